"""Recurrent Memory Transformer (arXiv 2207.06881), the baseline: [read; tokens; write] through the plain decoder.

m memory vectors stand before a segment and, to be written, after it; what the decoder makes of the write vectors is the
next segment's read memory.  Both ends begin as the same vectors and the causal mask is the plain one, as published.

One thing is added so that a warmed-up or imported Llama does not jump: tokens see memory keys with a factor `open` per
layer and head inside the softmax, zero at first.  At open = 1 (`rmt_open`) it is the published model.

A segment's frame is [carried read; initial read; tokens; write].  Tokens of the memory's own document see the carried
vectors, tokens of a document that begins in the segment the initial ones.

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
    """Who sees whom in one span of a segment, the same in every layer.

    seen: bool [B or 1, 1, Q, K], queries are what is new in this span, keys what the segment has so far.
    gated: bool [1, 1, Q, K], a token looking at memory.
    """

    start: int  # rotary position of the first query
    seen: Tensor
    gated: Tensor


@dataclass(frozen=True)
class Vectors:
    """vectors: [B, m, D], what the next segment reads; initial: [B, m, D], what a new document's segment reads."""

    vectors: Tensor
    initial: Tensor


class RMTMemory(SequentialMemory):
    """One layer's gate on memory keys; the first hosting layer also holds the initial vectors [m, D].

    The carry is the span's `Frame`, the same for all blocks; `Vectors` are carried.
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
        """What is left for the memory of each token's softmax over [carried; initial; tokens; write]."""
        address = []
        for weights in tape["weights"]:  # [1, Hq, Q, K]
            tokens = min(self.length, weights.size(3) - 2 * self.num_slots)
            seen = weights[0, :, 2 * self.num_slots : 2 * self.num_slots + tokens, : 2 * self.num_slots].float().cpu()
            # a token sees the carried vectors or, in the first segment, the initial ones; the others weigh nothing
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
        """q [B, Q, H, d], k and v [B, K, Hkv, d] -> [B, Q, H*d]; one softmax over memory and tokens."""
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        k, v = (t.repeat_interleave(q.size(1) // t.size(1), dim=1) for t in (k, v))
        scores = (q @ k.transpose(2, 3)).float() * q.size(-1) ** -0.5
        weights = scores.masked_fill(~frame.seen, float("-inf")).softmax(dim=-1)
        # never below 0, where the sum could vanish; the gradient passes, so that it can come back from there
        factor = self.open.float() + (self.open.float().clamp(min=0) - self.open.float()).detach()
        weights = weights * torch.where(frame.gated, factor[:, None, None], 1.0)
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-20)
        self.show("weights", weights)
        return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)


def frame_of(span: SegmentSpan, m: int, device: torch.device) -> Frame:
    """The frame of a span inside one segment; its documents are given."""
    documents, bank = span.documents, span.bank_document
    assert documents is not None and bank is not None
    o, prefix, written = span.offset, 2 * m, m if span.closes else 0
    # what stands at each place, [B, K]: carried read vectors -2, initial ones -1, tokens and write their document
    label = torch.cat(
        (
            bank.new_full((len(bank), m), -2),
            bank.new_full((len(bank), m), -1),
            documents,
            documents[:, -1:].expand(-1, written),
        ),
        dim=1,
    )
    reads = torch.where(label == bank.unsqueeze(1), -2, -1)  # the read vectors of a place's document
    looks_at_memory = (label >= 0).unsqueeze(2) & (reads.unsqueeze(2) == label.unsqueeze(1))
    keys = label.size(1)
    seen = (label.unsqueeze(2) == label.unsqueeze(1)) | looks_at_memory
    seen = seen & torch.ones(keys, keys, dtype=torch.bool, device=device).tril()
    place = torch.arange(keys, device=device)
    is_token = (place >= prefix) & (place < keys - written)
    gated = is_token.unsqueeze(1) & (place < prefix).unsqueeze(0)
    first = prefix + o if o else 0  # places that an earlier span has brought
    return Frame(span.start - o - prefix + first, seen[:, None, first:], gated[None, None, first:])
