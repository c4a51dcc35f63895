"""How a stream of tokens falls into segments, and which token may see what.

A call on L tokens is cut at segment boundaries into at most three spans: the rest of an open segment, a run of S
whole segments that are computed at once, and the beginning of a new one. In training there is one span.

B batch, S segments, T tokens of a segment, n tokens of a span, c cached tokens before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class SegmentSpan:
    """A stretch of the stream that lies inside one segment, or that is a run of whole segments."""

    begin: int  # first token, counted from the call's first token
    start: int  # the same token's position in the stream
    length: int  # n
    segment_length: int  # T
    attention_span: int  # segments a token attends to, its own included
    documents: Tensor | None  # int64 [B, c+n]: documents of the cached and the own tokens; None: one document
    bank_document: Tensor | None  # int64 [B]: document of the last token before the open segment (-1: none)
    # what `model.preparation` works out before the layers
    rotary: Tensor | None = None  # [2, n, 1, d/2]: the angles of the tokens' positions
    cuts: tuple[Tensor, Tensor] | None = None  # int32 [N+1] each: the sequences of `sequences`; None: a mask

    @property
    def end(self) -> int:
        return self.begin + self.length

    @property
    def offset(self) -> int:
        """Tokens of the open segment that came before this span."""
        return self.start % self.segment_length

    @property
    def segments(self) -> int:
        """S: whole segments in this span, or 1 for a part of one."""
        return max(1, self.length // self.segment_length) if self.offset == 0 else 1

    @property
    def closes(self) -> bool:
        """Whether the span ends on a segment boundary, so that the memory is written."""
        return (self.start + self.length) % self.segment_length == 0

    @property
    def cached(self) -> int:
        """c: tokens before the span that attention still sees."""
        return min(self.start, self.offset + (self.attention_span - 1) * self.segment_length)

    @property
    def kept(self) -> int:
        """Tokens whose keys and values the next span needs."""
        after = self.start + self.length
        return min(after, after % self.segment_length + (self.attention_span - 1) * self.segment_length)

    @property
    def padding(self) -> int:
        """Empty keys before the first window, so that every window of a run of segments has the same width."""
        return (self.attention_span - 1) * self.segment_length - self.cached if self.segments > 1 else 0

    @property
    def window(self) -> int:
        """W: keys a segment of this span looks at."""
        if self.segments > 1:
            return self.attention_span * self.segment_length
        return self.cached + self.length

    @cached_property
    def _masks(self) -> dict[torch.device, Tensor | None]:
        return {}  # every layer asks for the same one

    def attention_mask(self, device: torch.device) -> Tensor | None:
        """bool [B or 1, S or 1, n/S, W], True = may attend; None: plain causal attention over n = W tokens."""
        if device not in self._masks:
            self._masks[device] = self._attention_mask(device)
        return self._masks[device]

    def _attention_mask(self, device: torch.device) -> Tensor | None:
        queries = self.length // self.segments
        if self.documents is None and self.window == queries:
            return None
        ahead = self.window - queries  # keys of a window that stand before its first query
        mask = torch.ones(queries, self.window, dtype=torch.bool, device=device).tril(ahead)[None, None]
        if self.padding:
            key = torch.arange(self.window, device=device)
            first = torch.arange(self.segments, device=device).unsqueeze(1) * self.segment_length
            mask = mask & (first + key >= self.padding)[None, :, None]
        if self.documents is not None:
            keys = torch.nn.functional.pad(self.documents, (self.padding, 0), value=-1)
            keys = windows(keys, self)  # [B, S, W]
            mask = mask & (keys[:, :, ahead:, None] == keys[:, :, None, :])
        return mask

    @cached_property
    def _segment_documents(self) -> Tensor | None:
        """int64 [B, S, T or the open segment's length so far], the pending tokens of an open segment included."""
        if self.documents is None:
            return None
        pending = self.offset + self.length
        return self.documents[:, self.documents.size(1) - pending :].unflatten(1, (self.segments, -1))

    @cached_property
    def _entering(self) -> Tensor:
        """int64 [B, S]: document the bank that enters each segment belongs to."""
        assert self._segment_documents is not None and self.bank_document is not None
        return torch.cat((self.bank_document.unsqueeze(1), self._segment_documents[:, :-1, -1]), dim=1)

    @cached_property
    def readable(self) -> Tensor | None:
        """bool [B, S, n/S]: the token's document is the bank's; None: always."""
        if self._segment_documents is None:
            return None
        own = self._segment_documents[:, :, self.offset :]
        return own == self._entering.unsqueeze(2)

    @cached_property
    def continues(self) -> Tensor | None:
        """bool [B, S]: the segment's last token goes on with the bank's document; None: always."""
        if self._segment_documents is None:
            return None
        return self._segment_documents[:, :, -1] == self._entering

    @cached_property
    def writable(self) -> Tensor | None:
        """bool [B, S, T]: the token belongs to the document of its segment's last token; None: all do."""
        if self._segment_documents is None:
            return None
        return self._segment_documents == self._segment_documents[:, :, -1:]

    @property
    def next_bank_document(self) -> Tensor | None:
        """int64 [B]: document of the bank after this span."""
        if self._segment_documents is None or not self.closes:
            return self.bank_document
        return self._segment_documents[:, -1, -1]


def sequences(span: SegmentSpan, like: Tensor, changes: int | None = None) -> tuple[Tensor, Tensor]:
    """Where attention's sequences begin, in queries [B*n] and in keys [B*S*W]: a sequence is a run of one document
    inside one window, and its queries are aligned with its last keys.

    Args: like: int64 [B, L] on the device; changes: how often documents change in the span at most; None: it is
    counted, for which a GPU must be waited for once.
    Returns int32 [N + 1] each, their last entries the totals. N depends on `changes` and shapes only: entries that
    are not needed repeat the totals, as sequences of no token.
    """
    batch, queries, width = like.size(0), span.length // span.segments, span.window
    ahead, total = width - queries, batch * span.segments * width
    documents = span.documents
    if documents is None:
        documents, changes = like.new_zeros(batch, span.cached + span.length), 0
    elif changes is None or span.cached:
        changes = int((documents[:, 1:] != documents[:, :-1]).sum())
    filled = torch.nn.functional.pad(documents, (span.padding, 0), value=-1)
    own = windows(filled, span).reshape(-1, width)  # [B*S, W]
    new = torch.nn.functional.pad(own[:, 1:] != own[:, :-1], (1, 0), value=True).flatten()
    # a window's begin, where its padding ends, and each change once for every window that sees it
    most = batch * span.segments + span.attention_span * changes
    if span.padding:
        most += batch * (span.attention_span - 1)
    place = torch.where(new, new.cumsum(0) - 1, most)
    begins = like.new_full((most + 1,), total).scatter_(
        0, place, torch.arange(total, device=like.device).where(new, total)
    )
    window, offset = begins // width, begins % width
    return (window * queries + (offset - ahead).clamp(min=0)).int(), begins.int()


def windows(x: Tensor, span: SegmentSpan) -> Tensor:
    """[B, padding+c+n, …] -> [B, S, W, …]: the keys each segment looks at."""
    if span.segments == 1:
        return x.unsqueeze(1)
    if span.attention_span == 1:
        return x.unflatten(1, (span.segments, span.segment_length))
    return x.unfold(1, span.window, span.segment_length).movedim(-1, 2)


def spans(
    start: int,
    length: int,
    segment_length: int,
    attention_span: int,
    documents: Tensor | None = None,
    bank_document: Tensor | None = None,
    in_turn: bool = False,
    chunk_length: int | None = None,
) -> Iterator[SegmentSpan]:
    """Cut `length` tokens that begin at stream position `start`; `documents` int64 [B, c+length], cached ones first.

    in_turn: one segment a span, never a run of them. chunk_length: of explicit memory; a chunk that is open at
    `start` is a span of its own.
    """
    begin = 0
    while begin < length:
        at, left = start + begin, length - begin
        offset = at % segment_length
        whole = min(left, segment_length) if in_turn else left - left % segment_length
        take = min(left, segment_length - offset) if offset else whole or left
        if chunk_length and at % chunk_length:
            take = min(take, chunk_length - at % chunk_length)
        cut = None
        if documents is not None:
            cached = min(at, offset + (attention_span - 1) * segment_length)
            stop = documents.size(1) - left + take
            cut = documents[:, stop - take - cached : stop]
        span = SegmentSpan(begin, at, take, segment_length, attention_span, cut, bank_document)
        yield span
        bank_document, begin = span.next_bank_document, begin + take
