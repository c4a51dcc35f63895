"""Cutting a stream of tokens into segments, and which tokens see each other.

A call on L tokens is cut at segment boundaries into at most three spans: the rest of an open segment, S whole segments
that are computed at once, and the begin of a new segment. In training there is one span.

B batch, S segments, T tokens of a segment, n tokens of a span, c cached tokens before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class SegmentSpan:
    """Consecutive tokens of the stream that lie inside one segment, or that are S whole segments."""

    begin: int  # first token, counted from the call's first token
    start: int  # the same token's position in the stream
    length: int  # n
    segment_length: int  # T
    attention_span: int  # segments a token attends to, its own included
    documents: Tensor | None  # int64 [B, c+n]: documents of the cached and the own tokens; None: one document
    bank_document: Tensor | None  # int64 [B]: document of the last token before the open segment (-1: none)
    # set by `model.preparation` before the layers
    rotary: Tensor | None = None  # [2, n, 1, d/2]: the angles of the tokens' positions
    cuts: tuple[Tensor, Tensor] | None = None  # int32 [N+1] each, what `sequences` returns; None: use the mask

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
        """c, tokens before the span that attention still sees."""
        return min(self.start, self.offset + (self.attention_span - 1) * self.segment_length)

    @property
    def kept(self) -> int:
        """Tokens whose keys and values the next span needs."""
        after = self.start + self.length
        return min(after, after % self.segment_length + (self.attention_span - 1) * self.segment_length)

    @property
    def padding(self) -> int:
        """Empty keys before the first window, which give all windows of whole segments the same width."""
        return (self.attention_span - 1) * self.segment_length - self.cached if self.segments > 1 else 0

    @property
    def window(self) -> int:
        """W, keys that a segment of this span attends to."""
        if self.segments > 1:
            return self.attention_span * self.segment_length
        return self.cached + self.length

    @cached_property
    def _masks(self) -> dict[torch.device, Tensor | None]:
        return {}  # all layers use the same mask

    def attention_mask(self, device: torch.device) -> Tensor | None:
        """Return bool [B or 1, S or 1, n/S, W], True = may attend; None: causal attention over n = W tokens."""
        if device not in self._masks:
            self._masks[device] = self._attention_mask(device)
        return self._masks[device]

    def _attention_mask(self, device: torch.device) -> Tensor | None:
        queries = self.length // self.segments
        if self.documents is None and self.window == queries:
            return None
        ahead = self.window - queries  # keys of a window before its first query
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
        """Documents, int64 [B, S, T]; for an open segment [B, 1, tokens so far], those of earlier spans included."""
        if self.documents is None:
            return None
        pending = self.offset + self.length
        return self.documents[:, self.documents.size(1) - pending :].unflatten(1, (self.segments, -1))

    @cached_property
    def _entering(self) -> Tensor:
        """int64 [B, S], the document that the bank entering each segment belongs to."""
        assert self._segment_documents is not None and self.bank_document is not None
        return torch.cat((self.bank_document.unsqueeze(1), self._segment_documents[:, :-1, -1]), dim=1)

    @cached_property
    def readable(self) -> Tensor | None:
        """bool [B, S, n/S], True = the token's document is the bank's; None: true for all."""
        if self._segment_documents is None:
            return None
        own = self._segment_documents[:, :, self.offset :]
        return own == self._entering.unsqueeze(2)

    @cached_property
    def continues(self) -> Tensor | None:
        """bool [B, S], True = the segment's last token is of the bank's document; None: true for all."""
        if self._segment_documents is None:
            return None
        return self._segment_documents[:, :, -1] == self._entering

    @cached_property
    def writable(self) -> Tensor | None:
        """bool [B, S, T], True = the token is of the same document as its segment's last token; None: true for all."""
        if self._segment_documents is None:
            return None
        return self._segment_documents == self._segment_documents[:, :, -1:]

    @property
    def next_bank_document(self) -> Tensor | None:
        """int64 [B], the document that the bank after this span belongs to; None: no documents were given."""
        if self._segment_documents is None or not self.closes:
            return self.bank_document
        return self._segment_documents[:, -1, -1]


def sequences(span: SegmentSpan, like: Tensor, changes: int | None = None) -> tuple[Tensor, Tensor]:
    """Return where the sequences of varlen attention begin, in queries [B*n] and in keys [B*S*W].

    A sequence is the tokens of one document inside one window. Its queries are aligned with its last keys.

    Args: like: int64 [B, L] on the device; changes: at most how often documents change in the span; None: they are
        counted, which waits for a GPU once.
    Returns int32 [N + 1] each; the last entry is the total. N depends on `changes` and shapes only: surplus entries
        repeat the total, as sequences of no token.
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
    # upper bound of sequences: each window begins one, so does the end of its padding, and each change of document
    # begins one in every window that sees it
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
    """[B, padding+c+n, …] -> [B, S, W, …], the keys that each segment attends to."""
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
    sequential: bool = False,
    chunk_length: int | None = None,
) -> Iterator[SegmentSpan]:
    """Cut `length` tokens that begin at stream position `start` into spans.

    Args: documents: int64 [B, c+length], those of the cached tokens first; bank_document: int64 [B]; sequential: at
        most one segment a span; chunk_length: of explicit memory: a chunk that is open at `start` is a span of its own.
    """
    begin = 0
    while begin < length:
        at, left = start + begin, length - begin
        offset = at % segment_length
        whole = min(left, segment_length) if sequential else left - left % segment_length
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
