"""Memories whose segments can only be computed one after the other, and the loop over segments and blocks.

B batch, n tokens of a span, Q tokens and vectors that pass through the blocks for it, D hidden.
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
    """What a memory sees of the decoder layer that hosts it."""

    attention: Attention
    attention_norm: RMSNorm
    parallel: ParallelContext
    tp: TensorParallel

    def attend(self, x: Tensor, span: SegmentSpan, state: LayerState) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, n, D] after the block's attention, and the keys and values it keeps."""

    def feed_forward(self, x: Tensor) -> Tensor:
        """x [B, Q, D] after the block's feed-forward."""


class SequentialMemory(Memory):
    """A call loops over spans of at most one segment, and for each span over the blocks (`run_sequential`).

    The `carry` goes from block to block, what is `carried` from span to span, and to the next call.  Both belong to the
    kind; the first hosting block's memory makes them.  Blocks that host no memory hand the carry on.
    """

    num_slots: int  # of the carried memory, which `ablated` names by their number

    @abstractmethod
    def begin(self, hidden: Tensor, spans: Sequence[SegmentSpan], carried: Any) -> Any:
        """What is carried into a call, for embedded tokens [B, L, D]; `carried`: by the call before, None at first."""

    @abstractmethod
    def enter(self, x: Tensor, span: SegmentSpan, carried: Any, lost: Tensor | None) -> tuple[Tensor, Any]:
        """What goes into the first block for the tokens x [B, n, D] of a span: [B, Q, D] and the carry.

        lost: bool [N], True = this slot is read as at first; None: no slot.
        """

    @abstractmethod
    def step(
        self, block: Block, x: Tensor, carry: Any, span: SegmentSpan, state: LayerState
    ) -> tuple[Tensor, Any, LayerState]:
        """One block on one span: x [B, Q, D], the carry and the block's state, before and after."""

    @abstractmethod
    def leave(self, x: Tensor, carry: Any, span: SegmentSpan, carried: Any) -> tuple[Tensor, Any]:
        """The span's tokens [B, n, D] out of what left the last block, and what is carried on."""


def truncated(x: Tensor, span: SegmentSpan, every: int | None) -> Tensor:
    """x, detached where a span begins a segment whose number is a multiple of `every`: gradients end there."""
    segment = span.start // span.segment_length
    return x.detach() if every and span.offset == 0 and segment and segment % every == 0 else x


class Layer(Protocol):
    """A decoder layer, as the loop sees it."""

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
    """hidden [B, L, D] through all layers, span after span.

    call: runs a layer's function, directly or recomputing it in the backward pass.
    Returns the hidden states, the layers' states and what is carried to the next call.
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
