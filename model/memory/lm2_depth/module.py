"""LM2 as published (arXiv 2502.06049, section 2): one bank through the decoder blocks, then on to the next segment.

The bank M has a slot for every token of a segment (N = T), as wide as the model; the subscript of the equations counts
decoder blocks. With E the tokens after the block's self-attention:

    (1)  Q = E W_Q,  K = M W_K,  V = M W_V,  A = softmax(Q K^T / sqrt(d)) with a tril mask,  E_mem = A V
    (2)  g_out = sigmoid(E_mem W_out)
    (3)  E <- E + scale * g_out * E_mem         the paper prints g_out * M, whose shapes T x d and N x d do not fit
    (4)  g_in = sigmoid(E W_in)
    (5)  g_forget = sigmoid(E_mem W_forget)
    (6)  M <- g_in * tanh(E_mem) + g_forget * M     the shapes fit, because slot t belongs to token t

M starts as the identity (slot n is the unit vector n mod D). `scale` [D] starts at zero, so switching the memory on
changes no logit; the published model has it at one. E is normalised by an RMSNorm of its own before (1) and (4).

Slot t belongs to place t of a segment: it holds what the tokens at place t of this document's earlier segments wrote,
and later places of the segment read it. So a block's memory is attention within the segment, over slots instead of
tokens, and causality, documents and streaming follow the rules of attention.

The bank is fp32. Between pipeline stages, which send it with the tokens, it has the tokens' dtype.

Tensor parallel: W_Q, W_K, W_V are split by heads. E_mem is gathered once, the only collective of the forward. Gates and
slots are whole on every rank.

B batch, n tokens of the span, o earlier tokens of its open segment, H heads (of this rank), d head width, D = H*d.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbone import BackboneConfig
from model.linear import linear
from model.memory.lm2_depth.spec import LM2DepthConfig
from model.memory.reading import MemoryReading, Tape, gate_means
from model.memory.sequential import Block, SequentialMemory, truncated
from model.parallel import ColumnParallel
from model.parallel_context import ParallelContext
from model.sdpa import sdpa
from model.segments import SegmentSpan
from model.state import LayerState


@dataclass(frozen=True)
class SlotBank:
    """What is carried from segment to segment.

    slots: fp32 [B, T, D] after the last block. documents: int64 [B, T], the document that wrote each slot (-1: none
    yet); None: all belong to one document.
    """

    slots: Tensor
    documents: Tensor | None


@dataclass(frozen=True)
class DepthState:
    """State of one block. keys, values: [B, o, H, d] of the open segment's slots as they entered the block."""

    keys: Tensor
    values: Tensor


class LM2DepthMemory(SequentialMemory):
    """The layer that the module's docstring describes.

    From block to block goes the carry, the slots of the span's tokens, fp32 [B, n, D]; from span to span a `SlotBank`.
    """

    def __init__(self, config: LM2DepthConfig, model: BackboneConfig, parallel: ParallelContext) -> None:
        super().__init__()
        size, tp = model.hidden_size, parallel.tensor
        self.tp, self.top_k, self.init_std = tp, config.top_k, model.initial_std(size)
        self.num_slots, self.bptt_segments = model.segment_length, config.bptt_segments
        self.heads, self.width = config.heads // tp.size, size // config.heads
        self.norm = nn.RMSNorm(size, eps=model.norm_eps)
        self.query = ColumnParallel(size, size, tp)
        self.key = ColumnParallel(size, size, tp)
        self.value = ColumnParallel(size, size, tp)
        self.gate_out, self.gate_in, self.gate_forget = (nn.Parameter(torch.empty(size, size)) for _ in range(3))
        self.gate_forget_bias = nn.Parameter(torch.empty(size))
        self.scale = nn.Parameter(torch.empty(size))

    def initial_value(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        match name:
            case "norm.weight":
                return torch.ones(shape)
            case "gate_forget_bias":  # as in the released code: slots last through the blocks
                return torch.ones(shape)
            case "scale":
                return torch.zeros(shape)
        return torch.randn(shape, generator=generator) * self.init_std

    def initial_state(self, hidden: Tensor) -> DepthState:
        empty = hidden.new_empty(hidden.size(0), 0, self.heads, self.width)
        return DepthState(empty, empty)

    def begin(self, hidden: Tensor, spans: Sequence[SegmentSpan], carried: SlotBank | None) -> SlotBank:
        batch, first = hidden.size(0), spans[0]
        if carried is None:
            carried = SlotBank(self._initial(hidden), None)
        documents = carried.documents
        if first.documents is not None and documents is None:  # tokens before had no document ids: document 0
            fill = 0 if first.start >= self.num_slots else -1
            documents = torch.full((batch, self.num_slots), fill, dtype=torch.int64, device=hidden.device)
            documents[:, : first.offset] = 0
        return SlotBank(carried.slots, documents)

    def enter(self, x: Tensor, span: SegmentSpan, carried: SlotBank, lost: Tensor | None) -> tuple[Tensor, Tensor]:
        here, initial = slice(span.offset, span.offset + span.length), self._initial(x)
        entering = truncated(carried.slots[:, here], span, self.bptt_segments)
        if carried.documents is not None:
            assert span.documents is not None
            own = carried.documents[:, here] == span.documents[:, -span.length :]
            entering = torch.where(own.unsqueeze(2), entering, initial[:, here])
        if lost is not None:
            entering = torch.where(lost[here, None], initial[:, here], entering)
        return x, entering

    def step(
        self, block: Block, x: Tensor, carry: Tensor, span: SegmentSpan, state: LayerState
    ) -> tuple[Tensor, Tensor, LayerState]:
        x, keys, values = block.attend(x, span, state)
        x, slots, own = block.parallel.inner(self, x, carry, span, state.memory)
        return block.feed_forward(x), slots, LayerState(keys, values, own)

    def leave(self, x: Tensor, carry: Tensor, span: SegmentSpan, carried: SlotBank) -> tuple[Tensor, SlotBank]:
        begin, end, documents = span.offset, span.offset + span.length, carried.documents
        slots = torch.cat((carried.slots[:, :begin], carry, carried.slots[:, end:]), dim=1)
        if documents is not None:
            assert span.documents is not None
            documents = torch.cat((documents[:, :begin], span.documents[:, -span.length :], documents[:, end:]), dim=1)
        return x, SlotBank(slots, documents)

    def _initial(self, x: Tensor) -> Tensor:
        """Return the initial slots for a batch like x, fp32 [B, T, D]."""
        return initial_slots(self.num_slots, x.size(2), x.device).expand(x.size(0), -1, -1)

    def forward(
        self, x: Tensor, slots: Tensor, span: SegmentSpan, state: DepthState
    ) -> tuple[Tensor, Tensor, DepthState]:
        """Read and write the slots of a span's tokens in this block.

        Args: x [B, n, D], the residual stream after attention; slots fp32 [B, n, D] as the block before left them.
        Returns x and slots after the memory, and the next state: keys and values of the open segment, none once it
            closes.
        """
        e = self.norm(x)
        q = self.query(self.tp.copy(e)).unflatten(-1, (self.heads, self.width))
        entering = self.tp.copy(slots.to(x.dtype))
        keys, values = (p(entering).unflatten(-1, (self.heads, self.width)) for p in (self.key, self.value))
        keys, values = torch.cat((state.keys, keys), dim=1), torch.cat((state.values, values), dim=1)
        recalled = self._attend(q, keys, values, span)
        self.show("recalled", recalled)
        recalled = self.tp.gather(recalled.flatten(2))  # E_mem [B, n, D]
        gate_out = torch.sigmoid(linear(recalled, self.gate_out).float())
        gate_in = torch.sigmoid(linear(e, self.gate_in).float())
        gate_forget = torch.sigmoid(linear(recalled, self.gate_forget).float() + self.gate_forget_bias)
        for name, gate in (("in", gate_in), ("forget", gate_forget), ("out", gate_out)):
            self.record_gate(name, gate)
        x = x + (self.scale * gate_out * recalled).to(x.dtype)
        slots = gate_in * torch.tanh(recalled.float()) + gate_forget * slots
        self.show("slots", slots)
        kept = 0 if span.closes else keys.size(1)
        return x, slots, DepthState(keys[:, :kept], values[:, :kept])

    def reading(self, tape: Tape) -> MemoryReading:
        """See `Memory.reading`: addresses are a softmax over the slots of this and earlier places of the segment."""
        queries, keys, values, recalled, slots = (tape[name] for name in ("query", "key", "value", "recalled", "slots"))
        address, banks, error = [], [], 0.0
        for q, k, v, r, left in zip(queries, keys, values, recalled, slots, strict=True):
            scores = q @ k.transpose(2, 3) * q.size(-1) ** -0.5  # [1, H, n, o+n]
            ahead = k.size(2) - q.size(2)
            scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(ahead), float("-inf"))
            if self.top_k is not None:
                scores = _largest(scores, self.top_k)
            weights = scores.softmax(dim=-1)
            error = max(error, float(((weights @ v).transpose(1, 2) - r).abs().max()))
            missing = self.num_slots - k.size(2)
            address.append(F.pad(weights, (0, missing))[0].transpose(0, 1).float().cpu())
            banks.append(F.pad(left, (0, 0, 0, missing)).float().cpu())  # [1, N, D]
        found = torch.cat([r[0] for r in recalled]).float().cpu()
        return MemoryReading(torch.cat(address), torch.stack(banks), found, gate_means(tape), error)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, span: SegmentSpan) -> Tensor:
        """Attention of q [B, n, H, d] to slots' keys and values [B, o+n, H, d] -> [B, n, H, d]."""
        mask = span.attention_mask(q.device)  # bool [B or 1, 1, n, o+n]; None: plain causal
        q, keys, values = (t.transpose(1, 2) for t in (q, keys, values))
        for name, x in (("query", q), ("key", keys), ("value", values)):
            self.show(name, x)
        if self.top_k is None:
            return sdpa(q, keys, values, mask).transpose(1, 2)
        if mask is None:
            mask = torch.ones(q.size(2), keys.size(2), dtype=torch.bool, device=q.device).tril()
        scores = (q @ keys.transpose(2, 3) * self.width**-0.5).masked_fill(~mask, float("-inf"))
        return (_largest(scores, self.top_k).softmax(dim=-1) @ values).transpose(1, 2)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Return scores [..., K] with all but the `count` largest at minus infinity."""
    least = scores.topk(min(count, scores.size(-1)), dim=-1).values[..., -1:]
    return scores.masked_fill(scores < least, float("-inf"))


def initial_slots(length: int, size: int, device: torch.device) -> Tensor:
    """Return the initial slots of `length` places, fp32 [length, D]; that of place n is the unit vector n mod D."""
    return F.one_hot(torch.arange(length, device=device) % size, size).float()
