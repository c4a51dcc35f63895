"""Which references the chunks of one call see. It is the same in every layer, so it is computed once a call.

A reference's tokens stand at positions 0..R-1, the BOS before them, and a segment's first token at R. All references
stand at the same positions before the segment, so results do not depend on where the segment lies in the stream.

A bundle is the `each` references that one chunk brings.

B batch, S segments, n tokens of a span, M references of the call, k kept tokens of each, U chunks that begin in the
call, J bundles in sight of a segment, m kept tokens in sight of a segment, P tokens of the BOS, R longest reference,
W keys of the context that a segment's tokens attend to.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ExplicitConfig, ModelConfig
from model.errors import ModelError
from model.explicit.memory import Memory, OpenChunk
from model.explicit.references import References
from model.parallel import TensorParallel
from model.rope import rotate
from model.segments import SegmentSpan


@dataclass(frozen=True)
class Reading:
    """The references of one call on `length` tokens that begin at stream position `start`.

    documents: int64 [B, length], the ids of the tokens' documents; None: one document.
    opened: the references of the chunk that is open at `start`; None when no chunk is open or it has none.
    fresh: no state carries the BOS, so this call computes it.
    """

    config: ModelConfig
    tp: TensorParallel
    start: int
    length: int
    batch: int
    references: References | None
    documents: Tensor | None = None
    opened: OpenChunk | None = None
    fresh: bool = True
    _masks: dict[tuple[int, bool], Tensor] = field(default_factory=dict)  # all layers use the same masks

    @cached_property
    def explicit(self) -> ExplicitConfig:
        assert self.config.explicit is not None
        return self.config.explicit

    @cached_property
    def memory_layers(self) -> tuple[int, ...]:
        return self.explicit.memory_layers(self.config.num_layers)

    @property
    def last_memory_layer(self) -> int:
        return self.memory_layers[-1]

    @property
    def sink(self) -> int:
        """P when this call computes the BOS, else 0."""
        return len(self.explicit.bos) if self.fresh else 0

    def encoded(self, index: int) -> int:
        """Return how many references enter block `index` as tokens: none above the last memory layer or when stored."""
        if self.references is None or self.references.memories is not None or index > self.last_memory_layer:
            return 0
        return self.references.count

    @cached_property
    def first_chunk(self) -> int:
        """Number of the first chunk that begins in this call, counted from the begin of the stream."""
        return -(-self.start // self.explicit.chunk_length)

    @cached_property
    def chunks(self) -> int:
        """U: chunks that begin in this call."""
        return -(-(self.start + self.length) // self.explicit.chunk_length) - self.first_chunk

    @cached_property
    def own_heads(self) -> list[bool]:
        """For each key/value head of this rank, whether it has memory."""
        local, heads = self.config.num_kv_heads // self.tp.size, self.explicit.heads(self.config.num_kv_heads)
        return [self.tp.rank * local + head in heads for head in range(local)]

    def stored(self, index: int) -> Memory | None:
        """Return layer `index`'s part of the given memories, with this rank's heads; None: none were given."""
        if index not in self.memory_layers or self.references is None or self.references.memories is None:
            return None
        own = self.references.memories[:, :, self.memory_layers.index(index)]
        return Memory.of_heads(own, self.explicit.heads(self.config.num_kv_heads), self.config.num_kv_heads, self.tp)

    def in_sight(self, memory: Memory, span: SegmentSpan) -> tuple[Tensor, Tensor]:
        """Return keys, rotated to stand before the segment, and values [B, S, m, Hkv, d] in sight of each segment."""
        keys, values = (self._windows(x, span).flatten(2, 3) for x in (memory.keys, memory.values))
        return self.before_segments(keys, span), values

    def before_segments(self, keys: Tensor, span: SegmentSpan) -> Tensor:
        """Rotate keys [B, S, m, Hkv, d] from their positions in a reference to positions before each segment."""
        begin = span.start - span.offset - self.explicit.reference_length
        turned = rotate(keys.flatten(2, 3), begin, self.config, step=span.segment_length)
        return turned.view(keys.shape)

    def mask(self, span: SegmentSpan, with_references: bool, device: torch.device) -> Tensor:
        """Return bool [B or 1, S or 1, 1 or Hkv, n/S, P + m + W], True = the token may see the key.

        The keys are those of BOS, references and context, in this order.
        """
        key = (span.begin, with_references)
        if key not in self._masks:
            self._masks[key] = self._mask(span, with_references, device)
        return self._masks[key]

    def _mask(self, span: SegmentSpan, with_references: bool, device: torch.device) -> Tensor:
        queries = span.length // span.segments
        context = span.attention_mask(device)
        if context is None:
            context = torch.ones(queries, queries, dtype=torch.bool, device=device).tril()[None, None]
        parts = [context.unsqueeze(2)]
        if with_references and (visible := self._visible(span, device)) is not None:
            visible = visible.unsqueeze(2)
            if not all(self.own_heads):
                visible = visible & torch.tensor(self.own_heads, device=device)[None, None, :, None, None]
            parts.insert(0, visible)
        sink = torch.ones(1, 1, 1, queries, len(self.explicit.bos), dtype=torch.bool, device=device)
        parts.insert(0, sink)
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*shape, -1) for part in parts], dim=-1)

    def _visible(self, span: SegmentSpan, device: torch.device) -> Tensor | None:
        """Return bool [B, S or 1, n/S, m], True = the token sees the kept token; None: there are no references."""
        queries = span.length // span.segments
        if self.in_open_chunk(span):
            if self.opened is None:
                return None
            visible = self.opened.present[:, None, None]
            document_ids = self.opened.documents
            document_ids = document_ids if document_ids is None else document_ids.unsqueeze(1)
        else:
            if self.references is None:
                return None
            chunk = torch.arange(queries, device=device) // self.explicit.chunk_length
            seen = torch.arange(self._bundles_in_sight(span), device=device) - chunk.unsqueeze(1)  # [n/S, J]
            seen = (seen >= 0) & (seen < self.references.window)
            present = self._windows(self._present, span).flatten(2)  # [B, S, m]
            visible = seen.repeat_interleave(present.size(2) // seen.size(1), dim=1) & present.unsqueeze(2)
            document_ids = self._document_ids
            document_ids = document_ids if document_ids is None else self._windows(document_ids, span).flatten(2)
        if document_ids is not None and self.documents is not None:
            own = self.documents[:, span.begin : span.end].unflatten(1, (span.segments, -1))
            visible = visible & (own.unsqueeze(3) == document_ids.unsqueeze(2))
        return visible

    def in_open_chunk(self, span: SegmentSpan) -> bool:
        """Whether the span lies in the chunk that was open when the call began."""
        return span.start % self.explicit.chunk_length > 0

    @cached_property
    def _present(self) -> Tensor:
        """bool [B, M, k], True = the reference has such a kept token."""
        assert self.references is not None
        places = torch.arange(self.explicit.tokens, device=self.references.lengths.device)
        return places < self.references.lengths.unsqueeze(2)

    @cached_property
    def _document_ids(self) -> Tensor | None:
        """int64 [B, M, k], the document whose tokens retrieved each kept token's reference; None: not given."""
        if self.references is None or self.references.documents is None:
            return None
        return self.references.documents.unsqueeze(2).expand(-1, -1, self.explicit.tokens)

    def _bundles_in_sight(self, span: SegmentSpan) -> int:
        """J, bundles in sight of a segment of the span."""
        assert self.references is not None
        queries = span.length // span.segments
        return -(-queries // self.explicit.chunk_length) + self.references.window - 1

    def _bundles(self, x: Tensor) -> Tensor:
        """[B, M, k, ...] -> [B, U + window - 1, each * k, ...], by bundle; bundles that were not given are zero."""
        references = self.references
        assert references is not None
        x = x.unflatten(1, (-1, references.each)).flatten(2, 3)
        missing = self.chunks + references.window - 1 - x.size(1)
        return F.pad(x, [0, 0] * (x.dim() - 2) + [missing, 0]) if missing else x

    def _windows(self, x: Tensor, span: SegmentSpan) -> Tensor:
        """[B, M, k, ...] -> [B, S, J, each * k, ...], the bundles in sight of each segment of the span."""
        per_segment = -(-(span.length // span.segments) // self.explicit.chunk_length)
        first, count = span.start // self.explicit.chunk_length - self.first_chunk, self._bundles_in_sight(span)
        own = self._bundles(x)[:, first : first + (span.segments - 1) * per_segment + count]
        return own.unfold(1, count, per_segment).movedim(-1, 2)

    def open_chunk(self, span: SegmentSpan) -> OpenChunk | None:
        """Return the references of the chunk in which the call's last `span` ends.

        None when the span ends a chunk, or the chunk has no references.
        """
        if not self.leaves_open(span):
            return None
        if self.in_open_chunk(span):
            return self.opened
        if self.references is None:
            return None
        documents = None if self._document_ids is None else self._last(self._document_ids)
        return OpenChunk(self._last(self._present), documents)

    def leaves_open(self, span: SegmentSpan) -> bool:
        """Whether the span ends inside a chunk."""
        return (span.start + span.length) % self.explicit.chunk_length > 0

    def _last(self, x: Tensor) -> Tensor:
        """[B, M, k, ...] -> [B, window * each * k, ...], the bundles in sight of the call's last chunk."""
        assert self.references is not None
        return self._bundles(x)[:, -self.references.window :].flatten(1, 2)

    def last_chunk(self, memory: Memory, span: SegmentSpan) -> tuple[Tensor, Tensor]:
        """Return keys, rotated to stand before the segment, and values [B, m, Hkv, d] in sight of the last chunk."""
        keys, values = self._last(memory.keys), self._last(memory.values)
        return self.before_segments(keys.unsqueeze(1), span).squeeze(1), values


def read(
    config: ModelConfig,
    tp: TensorParallel,
    ids: Tensor,
    start: int,
    references: References | None,
    documents: Tensor | None,
    carried: OpenChunk | None,
    fresh: bool,
) -> Reading:
    """Return the reading of a call on ids int64 [B, L].

    Raises `ModelError` when `explicit.bos` is empty, or the references do not fit the call.
    """
    assert config.explicit is not None
    if not config.explicit.bos:
        raise ModelError(
            "model.explicit.bos: empty; give the token ids of '<s>Reference:' (a training run takes them from its "
            "data's tokenizer)"
        )
    reading = Reading(config, tp, start, ids.size(1), ids.size(0), references, documents, carried, fresh)
    if references is not None:
        references.check(ids.size(0), reading.chunks, config)
    return reading


def with_references(ids: Tensor, reading: Reading) -> Tensor:
    """Append to ids int64 [B, L] the BOS, when this call computes it, and the tokens of references to be written."""
    parts = [ids]
    if reading.fresh:
        # filled on the device: copying a list to a GPU would wait for all kernels before it
        parts += [ids.new_full((ids.size(0), 1), token) for token in reading.explicit.bos]
    if reading.encoded(0):
        assert reading.references is not None and reading.references.tokens is not None
        parts.append(reading.references.tokens.flatten(1))
    return torch.cat(parts, dim=1)
