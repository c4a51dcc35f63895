"""Compute once, before the layers, what all layers need of a call's spans.

So a layer can be compiled: it fills no cache and reads no number from the device.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.config import ModelConfig
from model.rope import angles, is_captured
from model.sdpa import serves_varlen
from model.segments import SegmentSpan, sequences


def prepare(
    config: ModelConfig, cut: Sequence[SegmentSpan], like: Tensor, dtype: torch.dtype, masked: bool, changes: int | None
) -> list[SegmentSpan]:
    """Return the spans with rotary angles, and with attention's cuts where a kernel takes them, else with its mask.

    Args: like: int64 [B, L] on the device; dtype: of the weights; masked: attention needs a mask on every device;
        changes: at most how often documents change in the call, None: unknown (`model.segments.sequences`).
    """
    device = like.device
    if device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
    varlen = not masked and serves_varlen(device, dtype, config.head_width)
    return [_prepared(config, span, like, dtype, varlen, changes) for span in cut]


def _prepared(
    config: ModelConfig, span: SegmentSpan, like: Tensor, dtype: torch.dtype, varlen: bool, changes: int | None
) -> SegmentSpan:
    rotary = angles(span.start, span.length, config, like.device).to(dtype)
    simple = span.documents is None and span.window * span.segments == span.length  # plain causal attention
    counted = span.documents is None or (changes is not None and not span.cached)
    cuts = None
    if varlen and not simple and (counted or not is_captured(like.device)):
        cuts = sequences(span, like, changes)
        for cut in cuts:  # the number of sequences changes from batch to batch
            torch._dynamo.maybe_mark_dynamic(cut, 0)
    span = replace(span, rotary=rotary, cuts=cuts)
    if cuts is None:
        span.attention_mask(like.device)
    _ = span.readable, span.writable, span.continues  # cached properties: this computes them
    return span


class Prepared:
    """The prepared spans of a pipeline stage: its first layer prepares them, and the others reuse them."""

    def __init__(self) -> None:
        self._documents: Tensor | None = None
        self._dtype: torch.dtype | None = None
        self._spans: list[SegmentSpan] = []

    def of(
        self, config: ModelConfig, cut: Iterable[SegmentSpan], documents: Tensor, dtype: torch.dtype
    ) -> list[SegmentSpan]:
        """Return prepared spans, anew when `documents` int64 [B, 1 + L] is another tensor than in the last call."""
        if self._documents is not documents or self._dtype != dtype:
            masked = config.explicit is not None
            self._spans = prepare(config, list(cut), documents, dtype, masked, None)
            self._documents, self._dtype = documents, dtype
        return self._spans
