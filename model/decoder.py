"""The decoder layer, and the flat list of layers a model is: embedding, decoder layer x n, norm, head.

The pipeline cuts this list; the plain model runs it in order.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention
from model.config import ModelConfig
from model.memory import LM2DepthMemory, RecurrentMemory, RMTMemory, build_memory
from model.memory.rmt import Frame
from model.parallel import ColumnParallel, RowParallel, TensorParallel, VocabParallel
from model.segments import Piece
from model.state import LayerState


class SwiGLU(nn.Module):
    """down(silu(gate(h)) * up(h)); neurons are split over the tensor-parallel ranks."""

    def __init__(self, config: ModelConfig, tp: TensorParallel) -> None:
        super().__init__()
        # rows [ffn, 2] (gate, up): a split of dim 0 is a split by neurons
        self.gate_up = ColumnParallel(config.hidden_size, 2 * config.ffn_size, tp)
        self.down = RowParallel(config.ffn_size, config.hidden_size, tp)

    def forward(self, h: Tensor) -> Tensor:
        """[B, L, D] -> this rank's partial [B, L, D]."""
        gate, up = self.gate_up(h).unflatten(-1, (-1, 2)).unbind(-1)
        return self.down(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    """Attention, then feed-forward with the memory beside it.

    The memory reads and writes tokens that have been through this block's attention, as in LM2 (section 2, E_attn);
    its partial output joins the feed-forward's before that one's all-reduce, so a memory adds no collective.  The two
    kinds that go through the segments in turn (`model.in_turn`) have entries of their own.
    """

    def __init__(self, config: ModelConfig, tp: TensorParallel, index: int, memory_on: bool) -> None:
        super().__init__()
        self.config, self.tp = config, tp
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = Attention(config, tp)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = SwiGLU(config, tp)
        hosts = memory_on and index in config.memory.hosts(config.num_layers)
        self.memory = build_memory(config, tp, index) if hosts else None

    def initial_state(self, hidden: Tensor) -> LayerState:
        """The state before the first token, for a batch like `hidden` [B, L, D]."""
        empty = hidden.new_empty(hidden.size(0), 0, self.config.num_kv_heads // self.tp.size, self.config.head_width)
        memory = self.memory.initial_state(hidden) if self.memory is not None else None
        return LayerState(empty, empty, memory)

    def forward(
        self, hidden: Tensor, pieces: Sequence[Piece], state: LayerState | None = None
    ) -> tuple[Tensor, LayerState]:
        """hidden [B, L, D] -> ([B, L, D], state after the last piece)."""
        state = state or self.initial_state(hidden)
        outputs = []
        for piece in pieces:
            output, state = self._piece(hidden[:, piece.begin : piece.end], piece, state)
            outputs.append(output)
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), state

    def _piece(self, x: Tensor, piece: Piece, state: LayerState) -> tuple[Tensor, LayerState]:
        x, keys, values = self._attend(x, piece, state)
        h = self.tp.copy(self.mlp_norm(x))
        partial, memory_state = self.mlp(h), None
        if self.memory is not None:
            assert isinstance(self.memory, RecurrentMemory)
            recalled, memory_state = self.memory(h, piece, state.memory)
            partial = partial + recalled
        return x + self.tp.reduce(partial), LayerState(keys, values, memory_state)

    def depth_piece(
        self, x: Tensor, slots: Tensor, piece: Piece, state: LayerState
    ) -> tuple[Tensor, Tensor, LayerState]:
        """With the published LM2's bank: x and these tokens' slots, both [B, n, D], before and after the block."""
        x, keys, values = self._attend(x, piece, state)
        memory_state = None
        if self.memory is not None:
            assert isinstance(self.memory, LM2DepthMemory)
            x, slots, memory_state = self.memory(x, slots, piece, state.memory)
        return self._feed_forward(x), slots, LayerState(keys, values, memory_state)

    def rmt_piece(self, x: Tensor, frame: Frame, closes: bool, state: LayerState) -> tuple[Tensor, LayerState]:
        """With memory vectors among the tokens: x [B, Q, D], the frame's queries."""
        assert isinstance(self.memory, RMTMemory)
        q, k, v = self.attention.project(self.tp.copy(self.attention_norm(x)), frame.start)
        k, v = torch.cat((state.keys, k), dim=1), torch.cat((state.values, v), dim=1)
        x = x + self.tp.reduce(self.attention.out(self.memory.attend(q, k, v, frame)))
        kept = 0 if closes else k.size(1)
        return self._feed_forward(x), LayerState(k[:, :kept], v[:, :kept], None)

    def _attend(self, x: Tensor, piece: Piece, state: LayerState) -> tuple[Tensor, Tensor, Tensor]:
        partial, keys, values = self.attention(self.tp.copy(self.attention_norm(x)), piece, state)
        return x + self.tp.reduce(partial), keys, values

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x + self.tp.reduce(self.mlp(self.tp.copy(self.mlp_norm(x))))


def new_embedding(config: ModelConfig, tp: TensorParallel) -> VocabParallel:
    """The token embedding [V, D]; the output head is another one, or the same when tied."""
    return VocabParallel(config.vocab_size, config.hidden_size, tp)


def new_norm(config: ModelConfig) -> nn.RMSNorm:
    """The norm before the head."""
    return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
