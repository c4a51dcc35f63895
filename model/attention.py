"""Grouped-query attention of a token to its segment and the `attention_span` - 1 segments before it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.explicit.attend import Extra
from model.parallel import InterleavedColumnParallel, RowParallel
from model.parallel_context import ParallelContext
from model.rope import rotate
from model.sdpa import sdpa, varlen
from model.segments import SegmentSpan, windows


class Attention(nn.Module):
    """Llama's attention; the tensor-parallel ranks share its heads."""

    def __init__(self, config: ModelConfig, parallel: ParallelContext) -> None:
        super().__init__()
        self.config, self.parallel, tp = config, parallel, parallel.tensor
        self.group = config.num_heads // config.num_kv_heads  # query heads per key/value head
        # rows are ordered [Hkv, group + 2, d], so that splitting dim 0 splits by key/value heads
        parts = (self.group, 1, 1)
        self.qkv = InterleavedColumnParallel(config.hidden_size, config.num_kv_heads, parts, config.head_width, tp)
        self.out = RowParallel(config.num_heads * config.head_width, config.hidden_size, tp)

    def forward(self, h: Tensor, span: SegmentSpan, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attention of one span.

        Args: h [B, n, D], normalised and copied into the tensor-parallel region; keys and values [B, c, Hkv/tp, d] of
            the cached tokens.
        Returns this rank's partial output [B, n, D], and the keys and values [B, kept, Hkv/tp, d] to carry.
        """
        q, k, v = self.project(h, span.start, span.rotary)
        k, v = torch.cat((keys, k), dim=1), torch.cat((values, v), dim=1)  # [B, c+n, Hkv, d]
        context = self.parallel.inner(self.attend, q, k, v, span)
        first = k.size(1) - span.kept
        return self.out(context), k[:, first:], v[:, first:]

    def project(self, h: Tensor, start: int, rotary: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """h [B, n, D] -> q [B, n, H, d], k and v [B, n, Hkv, d] of this rank, q and k rotated from position `start` on.

        rotary: the angles of these positions (`model.rope.angles`); None: they are computed.
        """
        q, k, v = self.split(h)
        q, k = (rotate(x, start, self.config, rotary=rotary) for x in (q, k))
        return q, k, v

    def split(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h [B, n, D] -> q [B, n, H, d], k and v [B, n, Hkv, d] of this rank, without rotary embedding."""
        q, k, v = self.qkv(h)  # [B, n, Hkv, group or 1, d]
        return q.flatten(2, 3), k.squeeze(3), v.squeeze(3)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, span: SegmentSpan, extra: Extra | None = None) -> Tensor:
        """Attention of q [B, n, H, d] to k and v [B, c+n, Hkv, d] -> [B, n, H*d].

        extra: keys, values and mask of explicit memory, which stand before each segment's own.
        """
        batch, segments = q.size(0), span.segments
        if span.padding:
            k, v = (F.pad(x, (0, 0, 0, 0, span.padding, 0)) for x in (k, v))
        if extra is None and span.cuts is not None:
            k, v = (windows(x, span).flatten(0, 2) for x in (k, v))  # [B*S*W, Hkv, d]
            longest = (span.length // segments, span.window)
            return varlen(q.flatten(0, 1), k, v, span.cuts, longest).flatten(1).unflatten(0, (batch, -1))
        # fold the segments into the batch: [B*S, H, n/S or W, d]
        q = q.unflatten(1, (segments, -1)).flatten(0, 1).transpose(1, 2)
        k, v = (windows(x, span).flatten(0, 1).transpose(1, 2) for x in (k, v))
        if extra is None:
            mask = span.attention_mask(q.device)
            mask = mask if mask is None else mask.unsqueeze(2)
        else:
            mask = extra.mask
            more = (x.flatten(0, 1).transpose(1, 2) for x in (extra.keys, extra.values))
            k, v = (torch.cat(pair, dim=2) for pair in zip(more, (k, v), strict=True))
        if mask is not None:  # [B or 1, S or 1, 1 or Hkv, n/S, keys]
            mask = mask[0] if mask.size(0) == mask.size(1) == 1 else _folded(mask, batch, segments)
            mask = mask.repeat_interleave(self.group, dim=1) if mask.size(1) > 1 else mask
        context = sdpa(q, k, v, mask)
        return context.transpose(1, 2).flatten(2).unflatten(0, (batch, segments)).flatten(1, 2)


def _folded(mask: Tensor, batch: int, segments: int) -> Tensor:
    """[B or 1, S or 1, ...] -> [B*S, ...]."""
    return mask.expand(batch, segments, -1, -1, -1).flatten(0, 1)
