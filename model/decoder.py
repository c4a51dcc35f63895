"""The decoder layer, and the other modules of a model: embedding, norm, head."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention
from model.config import ModelConfig
from model.explicit.attend import attend, encode
from model.explicit.memory import Memory
from model.explicit.reading import Reading
from model.memory.interface import RecurrentMemory
from model.memory.sequential import SequentialMemory
from model.parallel import InterleavedColumnParallel, RMSNorm, RowParallel, TensorParallel, VocabParallel
from model.parallel_context import ParallelContext
from model.segments import SegmentSpan
from model.state import LayerState


class SwiGLU(nn.Module):
    """down(silu(gate(h)) * up(h)); the tensor-parallel ranks share its neurons."""

    def __init__(self, config: ModelConfig, tp: TensorParallel) -> None:
        super().__init__()
        # rows are ordered [ffn, 2] (gate, up), so that splitting dim 0 splits by neurons
        self.gate_up = InterleavedColumnParallel(config.hidden_size, config.ffn_size, (1, 1), 1, tp)
        self.down = RowParallel(config.ffn_size, config.hidden_size, tp)

    def forward(self, h: Tensor) -> Tensor:
        """[B, L, D] -> this rank's partial [B, L, D]."""
        gate, up = (part.flatten(-3) for part in self.gate_up(h))
        return self.down(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    """Attention, then the feed-forward and the memory side by side.

    The memory's input is the output of this block's attention, as in LM2 (section 2, E_attn). Its partial output is
    added to the feed-forward's before their common all-reduce, so a memory adds no collective. A memory whose segments
    are computed one after the other runs in `step` instead of `forward`.
    """

    def __init__(self, config: ModelConfig, parallel: ParallelContext, index: int, memory_on: bool) -> None:
        super().__init__()
        self.config, self.parallel, self.index, self.tp = config, parallel, index, parallel.tensor
        tp = self.tp
        self.attention_norm = new_norm(config, tp)
        self.attention = Attention(config, parallel)
        self.mlp_norm = new_norm(config, tp)
        self.mlp = SwiGLU(config, tp)
        hosts = config.memory.memory_layers(config.num_layers) if memory_on else frozenset()
        self.memory = config.memory.build(config, parallel, index == min(hosts)) if index in hosts else None
        self._compiled: Callable[..., tuple[Tensor, LayerState]] | None = None

    def initial_state(self, hidden: Tensor) -> LayerState:
        """Return the state before the first token, for a batch like `hidden` [B, L, D]."""
        empty = hidden.new_empty(hidden.size(0), 0, self.config.num_kv_heads // self.tp.size, self.config.head_width)
        memory = self.memory.initial_state(hidden) if self.memory is not None else None
        return LayerState(empty, empty, memory)

    def forward(
        self,
        hidden: Tensor,
        spans: Sequence[SegmentSpan],
        state: LayerState | None = None,
        reading: Reading | None = None,
    ) -> tuple[Tensor, LayerState]:
        """Compute the block on a call's tokens; collective over the tensor group, and over the memory's segment group.

        Args:
            hidden: the residual stream [B, L, D]; with sequence parallelism this rank's [B, L/tp, D]; with `reading`
                [B, L + P + M*R, D], as `model.explicit.attend` describes.
            spans: the spans of the L tokens. state: after the tokens before; None: initial.
            reading: the call's references, in a model with explicit memory.
        Returns hidden after the block, without references after the last memory layer, and the next state.
        """
        block = self._compiled or self._eager
        hidden, state = block(hidden, spans, state or self.initial_state(hidden), reading)
        if self.memory is not None:
            self.memory.gather_gates()
        return hidden, state

    def compile_block(self) -> None:
        """Compile `forward` as one graph. The layer must be on one rank, with a memory that is not sequential."""
        self._compiled = torch.compile(self._eager, fullgraph=True, dynamic=False)

    def _eager(
        self, hidden: Tensor, spans: Sequence[SegmentSpan], state: LayerState, reading: Reading | None
    ) -> tuple[Tensor, LayerState]:
        h = self.tp.enter(self.attention_norm(hidden))
        if reading is None:
            partial, state = self._attention(h, spans, state)
        else:
            partial, state = attend(self.attention, h, spans, state, reading, self.index)
        x = hidden[:, : partial.size(1)] + self.tp.leave(partial) if reading else hidden + self.tp.leave(partial)
        h = self.tp.enter(self.mlp_norm(x))
        partial, memory_state = self.mlp(h), state.memory
        if self.memory is not None:
            assert isinstance(self.memory, RecurrentMemory)
            recalled = []
            for span in spans:
                arguments = (h[:, span.begin : span.end], span, memory_state)
                part, memory_state = self.parallel.inner(self.memory, *arguments)
                recalled.append(part)
            partial = _added(partial, _joined(recalled))
        return x + self.tp.leave(partial), replace(state, memory=memory_state)

    def _attention(self, h: Tensor, spans: Sequence[SegmentSpan], state: LayerState) -> tuple[Tensor, LayerState]:
        """h [B, L, D] -> attention's partial output [B, L, D], and the state with the keys and values to carry."""
        keys, values, partials = state.keys, state.values, []
        for span in spans:
            partial, keys, values = self.attention(h[:, span.begin : span.end], span, keys, values)
            partials.append(partial)
        return _joined(partials), replace(state, keys=keys, values=values)

    def write(self, hidden: Tensor, reading: Reading) -> tuple[Tensor, Memory | None]:
        """Compute the block on BOS and references alone, hidden [B, P + M*R, D]; return also what a layer keeps."""
        h = self.tp.enter(self.attention_norm(hidden))
        encoded = encode(self.attention, *self.attention.split(h), reading, self.index)
        partial = self.attention.out(torch.cat(encoded.contexts, dim=1))
        return self.feed_forward(hidden[:, : partial.size(1)] + self.tp.leave(partial)), encoded.memory

    def step(self, x: Tensor, carry: Any, span: SegmentSpan, state: LayerState) -> tuple[Tensor, Any, LayerState]:
        """Compute the block on one span of at most a segment, for a sequential memory (`SequentialMemory.step`)."""
        if self.memory is not None:
            assert isinstance(self.memory, SequentialMemory)
            return self.memory.step(self, x, carry, span, state)
        x, keys, values = self.attend(x, span, state)
        return self.feed_forward(x), carry, LayerState(keys, values, None)

    def attend(self, x: Tensor, span: SegmentSpan, state: LayerState) -> tuple[Tensor, Tensor, Tensor]:
        """Return x [B, n, D] after this block's attention, and the keys and values to carry. Collective."""
        partial, keys, values = self.attention(self.tp.copy(self.attention_norm(x)), span, state.keys, state.values)
        return x + self.tp.reduce(partial), keys, values

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return x [B, n, D] after this block's feed-forward alone. Collective."""
        return x + self.tp.reduce(self.mlp(self.tp.copy(self.mlp_norm(x))))


def new_embedding(config: ModelConfig, tp: TensorParallel) -> VocabParallel:
    """Return a token embedding [V, D]; the output head is another one, or the same one when tied."""
    return VocabParallel(config.vocab_size, config.hidden_size, tp)


def new_norm(config: ModelConfig, tp: TensorParallel) -> RMSNorm:
    """Return a norm of the residual stream: every layer has two, and the head has one before it."""
    return RMSNorm(config.hidden_size, config.norm_eps, tp)


def _added(partial: Tensor, recalled: Tensor) -> Tensor:
    """Add the memory's output `recalled` [B, L, D] to the first L positions of `partial` [B, n >= L, D]."""
    length = recalled.size(1)
    if length == partial.size(1):
        return partial + recalled
    return torch.cat((partial[:, :length] + recalled, partial[:, length:]), dim=1)


def _joined(parts: list[Tensor]) -> Tensor:
    """Concatenate parts [B, n, D] of a sequence -> [B, L, D]."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
