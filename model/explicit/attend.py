"""Attention of a block with explicit memory: one softmax over [BOS; the chunk's references; causal context].

A block computes tokens, BOS and references in one tensor [B, L + P + M*R, D], so that they share its matrix products
and its all-reduces. The BOS is left out when the state carries it, references above the last memory layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.explicit.memory import LayerReferences, Memory
from model.explicit.reading import Reading
from model.explicit.selection import received_attention, select, take
from model.rope import rotate
from model.sdpa import sdpa
from model.segments import SegmentSpan
from model.state import LayerState

if TYPE_CHECKING:
    from model.attention import Attention


@dataclass(frozen=True)
class Encoded:
    """BOS and references after the attention of one block.

    contexts: attention outputs [B, P, H*d] of the BOS, unless the state carries it, and [B, M*R, H*d] of the
        references, in the blocks below the last memory layer.
    sink_keys, sink_values: [B, P, Hkv, d] of the BOS. memory: what a memory layer keeps; None in other layers.
    """

    contexts: list[Tensor]
    sink_keys: Tensor
    sink_values: Tensor
    memory: Memory | None


def encode(
    attention: "Attention",
    q: Tensor,
    k: Tensor,
    v: Tensor,
    reading: Reading,
    index: int,
    carried: LayerReferences | None = None,
) -> Encoded:
    """Compute the attention of BOS and references in block `index`, and what a memory layer keeps of them.

    Args: q [B, P + M*R, H, d], k and v [B, P + M*R, Hkv, d], without rotary embedding; carried: the layer's state of an
        earlier call, which has the BOS; None: P tokens of q, k and v are the BOS.
    """
    config, p, contexts = reading.config, reading.sink, []
    if carried is None:
        sink_keys, sink_values = rotate(k[:, :p], -p, config), v[:, :p].clone()  # a view would keep all of v alive
        contexts.append(_causal(rotate(q[:, :p], -p, config), sink_keys, sink_values))
    else:
        sink_keys, sink_values = carried.sink_keys, carried.sink_values
    count, memory = reading.encoded(index), None
    if count:
        references = reading.references
        assert references is not None
        q, k, v = (x[:, p:].unflatten(1, (count, -1)).flatten(0, 1) for x in (q, k, v))  # [B*M, R, H, d]
        keys = rotate(k, 0, config)
        if index in reading.memory_layers:
            lengths = references.lengths.flatten()
            scores = received_attention(q, k, lengths, reading.explicit.selection)
            chosen = select(scores, reading.explicit.tokens)
            memory = Memory(*(take(x, chosen, lengths).unflatten(0, (-1, count)) for x in (keys, v)))
        if index != reading.last_memory_layer:
            before = (x.repeat_interleave(count, dim=0) for x in (sink_keys, sink_values))
            keys, v = (torch.cat(pair, dim=1) for pair in zip(before, (keys, v), strict=True))
            context = attention.parallel.inner(_causal, rotate(q, 0, config), keys, v)
            contexts.append(context.view(len(references.lengths), -1, context.size(-1)))
    return Encoded(contexts, sink_keys, sink_values, memory)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q [R, n, H, d] to k and v [R, P + n, Hkv, d], aligned at their ends -> [R, n, H*d]."""
    ahead = k.size(1) - q.size(1)
    mask = torch.ones(q.size(1), k.size(1), dtype=torch.bool, device=q.device).tril(ahead) if ahead else None
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return sdpa(q, k, v, mask).transpose(1, 2).flatten(2)


def attend(
    attention: "Attention", h: Tensor, spans: Sequence[SegmentSpan], state: LayerState, reading: Reading, index: int
) -> tuple[Tensor, LayerState]:
    """Attention of block `index` for tokens, BOS and references.

    Args: h [B, L + P + M*R, D], normalised and copied into the tensor-parallel region.
    Returns this rank's partial output [B, n, D], n counting the tokens and the BOS and references of
        `Encoded.contexts`, and the layer's next state.
    """
    length = reading.length
    q, k, v = attention.split(h)
    carried = None if reading.fresh else state.references
    assert reading.fresh or carried is not None, "the state of a model without explicit memory"
    encoded = encode(attention, q[:, length:], k[:, length:], v[:, length:], reading, index, carried)
    sink_keys, sink_values = encoded.sink_keys, encoded.sink_values
    memory = reading.stored(index) if encoded.memory is None else encoded.memory
    keys, values, outputs = state.keys, state.values, []
    for span in spans:
        part = slice(span.begin, span.end)
        own_q, own_k = (rotate(x[:, part], span.start, reading.config) for x in (q, k))
        keys, values = torch.cat((keys, own_k), dim=1), torch.cat((values, v[:, part]), dim=1)
        if reading.in_open_chunk(span) and carried is not None:
            more = carried.keys.unsqueeze(1), carried.values.unsqueeze(1)
        else:
            more = _before(sink_keys, sink_values, memory, span, reading)
        with_references = more[0].size(2) > sink_keys.size(1)
        extra = Extra(*more, reading.mask(span, with_references, q.device))
        outputs.append(attention.parallel.inner(attention.attend, own_q, keys, values, span, extra))
        first = keys.size(1) - span.kept
        keys, values = keys[:, first:], values[:, first:]
    partial = attention.out(torch.cat([*outputs, *encoded.contexts], dim=1))
    references = _carried(sink_keys, sink_values, memory, spans[-1], reading, carried)
    return partial, LayerState(keys, values, state.memory, references)


@dataclass(frozen=True)
class Extra:
    """Keys and values [B, S, P + m, Hkv, d] of BOS and references, which stand before the context's.

    mask: which token may see which key, of these and of the context's (`Reading.mask`).
    """

    keys: Tensor
    values: Tensor
    mask: Tensor


def _before(
    sink_keys: Tensor, sink_values: Tensor, memory: Memory | None, span: SegmentSpan, reading: Reading
) -> tuple[Tensor, Tensor]:
    """Return keys and values [B, S, P or P+m, Hkv, d] of BOS and references, rotated to stand before each segment."""
    wide = (-1, span.segments, -1, -1, -1)
    keys = reading.before_segments(sink_keys.unsqueeze(1).expand(wide), span)
    values = sink_values.unsqueeze(1).expand(wide)
    if memory is None:
        return keys, values
    more_keys, more_values = reading.in_sight(memory, span)
    return torch.cat((keys, more_keys), dim=2), torch.cat((values, more_values), dim=2)


def _carried(
    sink_keys: Tensor,
    sink_values: Tensor,
    memory: Memory | None,
    span: SegmentSpan,
    reading: Reading,
    carried: LayerReferences | None,
) -> LayerReferences:
    """Return what this layer carries to the next call: the BOS, and the open chunk's references."""
    if not reading.leaves_open(span):
        none = sink_keys[:, :0]
        return LayerReferences(sink_keys, sink_values, none, none)
    if reading.in_open_chunk(span) and carried is not None:
        return carried
    keys = reading.before_segments(sink_keys.unsqueeze(1), span).squeeze(1)
    if memory is None:
        return LayerReferences(sink_keys, sink_values, keys, sink_values)
    more_keys, more_values = reading.last_chunk(memory, span)
    return LayerReferences(
        sink_keys, sink_values, torch.cat((keys, more_keys), dim=1), torch.cat((sink_values, more_values), dim=1)
    )
