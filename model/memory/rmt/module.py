"""Recurrent Memory Transformer (arXiv 2207.06881), the baseline: the decoder computes [read; tokens; write].

m memory vectors, the read vectors, stand before a segment, and m write vectors after it. The decoder's outputs at the
write vectors are the next segment's read vectors. As published, read and write vectors of a segment enter the decoder
with equal values, and the mask is causal.

One factor is added, so that switching the memory on changes no logit of a trained or imported Llama: inside the softmax
memory keys are weighted by `open`, a parameter per layer and head that starts at zero. `rmt_open: 1` is the published
model.

A segment's frame is [carried read; initial read; tokens; write]. Tokens of the document that wrote the memory see the
carried vectors; tokens of a document that begins in the segment see the initial ones.

B batch, m memory vectors, n tokens of the span, o earlier tokens of its open segment, H heads (of this rank).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.backbone import BackboneConfig
from model.memory.reading import MemoryReading, Tape
from model.memory.rmt.spec import RMTConfig
from model.memory.sequential import Block, SequentialMemory, truncated
from model.parallel import sharded_parameter
from model.parallel_context import ParallelContext
from model.segments import SegmentSpan
from model.state import LayerState


@dataclass(frozen=True)
class Frame:
    """Masks of one span of a segment, the same in every layer.

    Q queries, the vectors that this span adds; K keys, the vectors of the segment so far.
    seen: bool [B or 1, 1, Q, K], True = the query sees the key. gated: bool [1, 1, Q, K], True = a token's weight of a
    memory vector, which `open` multiplies.
    """

    start: int  # rotary position of the first query
    seen: Tensor
    gated: Tensor


@dataclass(frozen=True)
class Vectors:
    """vectors: [B, m, D], the next segment's read vectors; initial: [B, m, D], those of a document that begins."""

    vectors: Tensor
    initial: Tensor


class RMTMemory(SequentialMemory):
    """One layer's factors on memory keys; the first hosting layer also holds the initial vectors [m, D].

    From block to block goes the carry, the span's `Frame`, unchanged; from span to span go `Vectors`.
    """

    def __init__(self, config: RMTConfig, model: BackboneConfig, parallel: ParallelContext, holds_tokens: bool) -> None:
        super().__init__()
        self.opening, self.init_std = config.rmt_open, model.initial_std(model.hidden_size)
        self.open = sharded_parameter((model.num_heads,), parallel.tensor)
        self.num_slots, self.length = config.num_slots(model), model.segment_length
        self.bptt_segments = config.bptt_segments
        self.tokens = nn.Parameter(torch.empty(self.num_slots, model.hidden_size)) if holds_tokens else None

    def initial_value(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if name == "open":
            return torch.full(shape, self.opening)
        return torch.randn(shape, generator=generator) * self.init_std

    def used_outside_forward(self) -> Iterable[nn.Parameter]:
        return self.parameters()

    def initial_state(self, hidden: Tensor) -> None:
        return None

    def reading(self, tape: Tape) -> MemoryReading:
        """See `Memory.reading`: addresses are the memory's part of each token's softmax."""
        address = []
        for weights in tape["weights"]:  # [1, Hq, Q, K]
            tokens = min(self.length, weights.size(3) - 2 * self.num_slots)
            seen = weights[0, :, 2 * self.num_slots : 2 * self.num_slots + tokens, : 2 * self.num_slots].float().cpu()
            # a token sees the carried vectors or, in a document's first segment, the initial ones; the others weigh 0
            address.append((seen[..., : self.num_slots] + seen[..., self.num_slots :]).transpose(0, 1))
        return MemoryReading(torch.cat(address), None, None, {}, 0.0)

    def begin(self, hidden: Tensor, spans: Sequence[SegmentSpan], carried: Vectors | None) -> Vectors:
        assert self.tokens is not None
        initial = self.tokens.to(hidden.dtype).expand(hidden.size(0), -1, -1)
        return Vectors(initial if carried is None else carried.vectors, initial)

    def enter(self, x: Tensor, span: SegmentSpan, carried: Vectors, lost: Tensor | None) -> tuple[Tensor, Frame]:
        assert span.documents is not None and span.bank_document is not None
        vectors, initial = truncated(carried.vectors, span, self.bptt_segments), carried.initial
        if lost is not None:
            vectors = torch.where(lost[:, None], initial, vectors)
        parts = [vectors, initial, x] if span.offset == 0 else [x]
        if span.closes:
            goes_on = (span.documents[:, -1] == span.bank_document)[:, None, None]
            parts.append(torch.where(goes_on, vectors, initial))
        return torch.cat(parts, dim=1), frame_of(span, self.num_slots, x.device)

    def step(
        self, block: Block, x: Tensor, carry: Frame, span: SegmentSpan, state: LayerState
    ) -> tuple[Tensor, Frame, LayerState]:
        q, k, v = block.attention.project(block.tp.copy(block.attention_norm(x)), carry.start)
        k, v = torch.cat((state.keys, k), dim=1), torch.cat((state.values, v), dim=1)
        context = block.parallel.inner(self.attend, q, k, v, carry)
        x = x + block.tp.reduce(block.attention.out(context))
        kept = 0 if span.closes else k.size(1)
        return block.feed_forward(x), carry, LayerState(k[:, :kept], v[:, :kept], None)

    def leave(self, x: Tensor, carry: Frame, span: SegmentSpan, carried: Vectors) -> tuple[Tensor, Vectors]:
        begin = 2 * self.num_slots if span.offset == 0 else 0
        end = begin + span.length
        return x[:, begin:end], Vectors(x[:, end:], carried.initial) if span.closes else carried

    def attend(self, q: Tensor, k: Tensor, v: Tensor, frame: Frame) -> Tensor:
        """Attention of q [B, Q, H, d] to k and v [B, K, Hkv, d] -> [B, Q, H*d], one softmax over memory and tokens."""
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        k, v = (t.repeat_interleave(q.size(1) // t.size(1), dim=1) for t in (k, v))
        scores = (q @ k.transpose(2, 3)).float() * q.size(-1) ** -0.5
        weights = scores.masked_fill(~frame.seen, float("-inf")).softmax(dim=-1)
        # clamped at 0, below which the sum could vanish; the gradient is not clamped, so that training can raise it
        factor = self.open.float() + (self.open.float().clamp(min=0) - self.open.float()).detach()
        weights = weights * torch.where(frame.gated, factor[:, None, None], 1.0)
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-20)
        self.show("weights", weights)
        return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)


def frame_of(span: SegmentSpan, m: int, device: torch.device) -> Frame:
    """Return the frame of a span inside one segment; the span must have documents. m: memory vectors."""
    documents, bank = span.documents, span.bank_document
    assert documents is not None and bank is not None
    o, prefix, written = span.offset, 2 * m, m if span.closes else 0
    # [B, K]: -2 for carried read vectors, -1 for initial ones, the document for tokens and write vectors
    label = torch.cat(
        (
            bank.new_full((len(bank), m), -2),
            bank.new_full((len(bank), m), -1),
            documents,
            documents[:, -1:].expand(-1, written),
        ),
        dim=1,
    )
    reads = torch.where(label == bank.unsqueeze(1), -2, -1)  # which read vectors a place's document sees
    looks_at_memory = (label >= 0).unsqueeze(2) & (reads.unsqueeze(2) == label.unsqueeze(1))
    keys = label.size(1)
    seen = (label.unsqueeze(2) == label.unsqueeze(1)) | looks_at_memory
    seen = seen & torch.ones(keys, keys, dtype=torch.bool, device=device).tril()
    place = torch.arange(keys, device=device)
    is_token = (place >= prefix) & (place < keys - written)
    gated = is_token.unsqueeze(1) & (place < prefix).unsqueeze(0)
    first = prefix + o if o else 0  # places that earlier spans have computed
    return Frame(span.start - o - prefix + first, seen[:, None, first:], gated[None, None, first:])
