"""Memories whose segments can only be computed one after the other, and the loop over segments and blocks.

B batch, n tokens of a span, Q vectors that pass through the blocks for it (its tokens and the memory's), D hidden.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from model.attention import Attention
from model.memory.interface import Memory, lost_slots, memories
from model.parallel import RMSNorm, TensorParallel
from model.parallel_context import ParallelContext
from model.segments import SegmentSpan
from model.state import LayerState


class Block(Protocol):
    """The decoder layer that hosts a memory, as the memory sees it."""

    attention: Attention
    attention_norm: RMSNorm
    parallel: ParallelContext
    tp: TensorParallel

    def attend(self, x: Tensor, span: SegmentSpan, state: LayerState) -> tuple[Tensor, Tensor, Tensor]:
        """Return x [B, n, D] after the block's attention, and the keys and values to carry."""

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return x [B, Q, D] after the block's feed-forward."""


class SequentialMemory(Memory):
    """A call loops over spans of at most one segment, and for each span over the blocks (`run_sequential`).

    `carry` is handed from block to block, `carried` from span to span and from call to call. The kind defines the types
    of both, and the memory of the first hosting block makes them. Blocks without a memory pass the carry on unchanged.
    """

    num_slots: int  # of the carried memory, which `ablated` names by their number

    @abstractmethod
    def begin(self, hidden: Tensor, spans: Sequence[SegmentSpan], carried: Any) -> Any:
        """Return what the first span is given, for embedded tokens [B, L, D].

        carried: what the call before left; None at the first call.
        """

    @abstractmethod
    def enter(self, x: Tensor, span: SegmentSpan, carried: Any, lost: Tensor | None) -> tuple[Tensor, Any]:
        """Return the first block's input [B, Q, D] and carry for a span's tokens x [B, n, D].

        lost: bool [N], True = the slot is replaced by its initial value; None: none is.
        """

    @abstractmethod
    def step(
        self, block: Block, x: Tensor, carry: Any, span: SegmentSpan, state: LayerState
    ) -> tuple[Tensor, Any, LayerState]:
        """Compute one block on one span; return x [B, Q, D], the carry and the block's state after it."""

    @abstractmethod
    def leave(self, x: Tensor, carry: Any, span: SegmentSpan, carried: Any) -> tuple[Tensor, Any]:
        """Return the span's tokens [B, n, D] from the last block's output x [B, Q, D], and the next `carried`."""


def truncated(x: Tensor, span: SegmentSpan, every: int | None) -> Tensor:
    """Return x, detached where the span begins a segment whose number is a multiple of `every`; None: never."""
    segment = span.start // span.segment_length
    return x.detach() if every and span.offset == 0 and segment and segment % every == 0 else x


class Layer(Protocol):
    """A decoder layer, as `run_sequential` sees it."""

    def step(self, x: Tensor, carry: Any, span: SegmentSpan, state: LayerState) -> tuple[Tensor, Any, LayerState]:
        """See `SequentialMemory.step`."""


def run_sequential(
    layers: Sequence[Layer],
    hidden: Tensor,
    spans: Sequence[SegmentSpan],
    states: list[LayerState],
    carried: Any,
    call: Callable[..., Any],
) -> tuple[Tensor, list[LayerState], Any]:
    """Compute all layers on hidden [B, L, D], span after span.

    call: runs a layer's `step`, with recomputation in the backward pass or without.
    Returns hidden [B, L, D], the layers' states, and what the next call is given.
    """
    found = [m for layer in layers for m in memories(layer)]  # type: ignore[arg-type]  # layers are modules
    first = found[0]
    assert isinstance(first, SequentialMemory)
    lost = lost_slots(found, first.num_slots, hidden.device)
    carried, outputs = first.begin(hidden, spans, carried), []
    for span in spans:
        x, carry = first.enter(hidden[:, span.begin : span.end], span, carried, lost)
        for index, layer in enumerate(layers):
            x, carry, states[index] = call(layer.step, x, carry, span, states[index])
        x, carried = first.leave(x, carry, span, carried)
        outputs.append(x)
    return torch.cat(outputs, dim=1), states, carried
