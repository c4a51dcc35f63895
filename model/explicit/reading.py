"""How the chunks of one call see references: the same in every layer, so it is worked out once.

A reference's tokens stand at positions 0..R-1, the BOS before them; a segment's tokens go on at R.  So references, all
at the same places, lie before the segment, and nothing depends on where the segment lies in the stream.

B batch, S segments, T tokens of a segment, C chunks of a segment, M references of the call, k kept tokens of each,
P tokens of the BOS, R longest reference, W keys of the context that a segment's tokens look at.
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
    """One call on `length` tokens from stream position `start` on; in pipeline stages as in the whole model.

    documents: int64 [B, length], the ids of the tokens' documents; None: one document.
    opened: of the chunk that is open at `start`; None when none is, or nothing was carried.
    fresh: the BOS is computed with the tokens, for it was not carried.
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
    _masks: dict[tuple[int, bool], Tensor] = field(default_factory=dict)  # every layer asks for the same ones

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
        """P, when the BOS is computed in this call; else 0."""
        return len(self.explicit.bos) if self.fresh else 0

    def encoded(self, index: int) -> int:
        """References whose tokens come into layer `index` to be written there."""
        if self.references is None or self.references.memories is not None or index > self.last_memory_layer:
            return 0
        return self.references.count

    @cached_property
    def first_chunk(self) -> int:
        """The first chunk that begins in this call, counted from the stream's begin."""
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
        """Layer `index`'s part of memories that were given, for this rank's heads."""
        if index not in self.memory_layers or self.references is None or self.references.memories is None:
            return None
        own = self.references.memories[:, :, self.memory_layers.index(index)]
        return Memory.of_heads(own, self.explicit.heads(self.config.num_kv_heads), self.config.num_kv_heads, self.tp)

    def in_sight(self, memory: Memory, span: SegmentSpan) -> tuple[Tensor, Tensor]:
        """Keys and values [B, S, m, Hkv, d] of the references that each segment of a span has in sight, before it."""
        keys, values = (self._windows(x, span).flatten(2, 3) for x in (memory.keys, memory.values))
        return self.before_segments(keys, span), values

    def before_segments(self, keys: Tensor, span: SegmentSpan) -> Tensor:
        """Keys [B, S, m, Hkv, d] at places in a reference's window -> before each segment of the span."""
        begin = span.start - span.offset - self.explicit.reference_length
        turned = rotate(keys.flatten(2, 3), begin, self.config, step=span.segment_length)
        return turned.view(keys.shape)

    def mask(self, span: SegmentSpan, with_references: bool, device: torch.device) -> Tensor:
        """bool [B or 1, S or 1, 1 or Hkv, n/S, P + m + W]: what each token may see of BOS, references and context."""
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
        """bool [B, S or 1, n/S, m]: the references each token sees; None: there are none."""
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
        """Whether the span is (part of) the chunk that was open when the call began."""
        return span.start % self.explicit.chunk_length > 0

    @cached_property
    def _present(self) -> Tensor:
        """bool [B, M, k]"""
        assert self.references is not None
        slots = torch.arange(self.explicit.tokens, device=self.references.lengths.device)
        return slots < self.references.lengths.unsqueeze(2)

    @cached_property
    def _document_ids(self) -> Tensor | None:
        """int64 [B, M, k]"""
        if self.references is None or self.references.documents is None:
            return None
        return self.references.documents.unsqueeze(2).expand(-1, -1, self.explicit.tokens)

    def _bundles_in_sight(self, span: SegmentSpan) -> int:
        """J: bundles that a segment of the span has in sight."""
        assert self.references is not None
        queries = span.length // span.segments
        return -(-queries // self.explicit.chunk_length) + self.references.window - 1

    def _bundles(self, x: Tensor) -> Tensor:
        """[B, M, k, ...] -> [B, U + window - 1, each * k, ...]: those before the first one that was given are zero."""
        references = self.references
        assert references is not None
        x = x.unflatten(1, (-1, references.each)).flatten(2, 3)
        missing = self.chunks + references.window - 1 - x.size(1)
        return F.pad(x, [0, 0] * (x.dim() - 2) + [missing, 0]) if missing else x

    def _windows(self, x: Tensor, span: SegmentSpan) -> Tensor:
        """[B, M, k, ...] -> [B, S, J, each * k, ...]: what each segment of the span has in sight."""
        per_segment = -(-(span.length // span.segments) // self.explicit.chunk_length)
        first, count = span.start // self.explicit.chunk_length - self.first_chunk, self._bundles_in_sight(span)
        own = self._bundles(x)[:, first : first + (span.segments - 1) * per_segment + count]
        return own.unfold(1, count, per_segment).movedim(-1, 2)

    def open_chunk(self, span: SegmentSpan) -> OpenChunk | None:
        """What is carried of the chunk that the call's last span ends in; None: it ends with a chunk."""
        if not self.leaves_open(span):
            return None
        if self.in_open_chunk(span):
            return self.opened
        if self.references is None:
            return None
        documents = None if self._document_ids is None else self._last(self._document_ids)
        return OpenChunk(self._last(self._present), documents)

    def leaves_open(self, span: SegmentSpan) -> bool:
        """Whether a chunk is open after the span."""
        return (span.start + span.length) % self.explicit.chunk_length > 0

    def _last(self, x: Tensor) -> Tensor:
        """[B, M, k, ...] -> [B, window * each * k, ...]: what the call's last chunk has in sight."""
        assert self.references is not None
        return self._bundles(x)[:, -self.references.window :].flatten(1, 2)

    def last_chunk(self, memory: Memory, span: SegmentSpan) -> tuple[Tensor, Tensor]:
        """Keys, before the segment, and values [B, m, Hkv, d] of the last chunk's references."""
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
    """The reading of a call on ids int64 [B, L]; raises `ModelError` when the references do not fit it."""
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
    """Tokens int64 [B, L] and what travels behind them: the BOS, and the references to be written."""
    parts = [ids]
    if reading.fresh:
        # filled in on the device: a copy of a list would wait there for all that was begun before
        parts += [ids.new_full((ids.size(0), 1), token) for token in reading.explicit.bos]
    if reading.encoded(0):
        assert reading.references is not None and reading.references.tokens is not None
        parts.append(reading.references.tokens.flatten(1))
    return torch.cat(parts, dim=1)
