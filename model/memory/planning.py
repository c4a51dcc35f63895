"""Inputs of a memory kind's cost formulas: one rank's share of the work (`RankShare`), a device's speed (`Speeds`)."""

from dataclasses import dataclass
from typing import Protocol

from model.backbone import BackboneConfig

FP32 = 4  # bytes
SCAN_PASSES = 12  # reads and writes of the states, copies included


@dataclass(frozen=True)
class RankShare:
    """One rank's share of a micro-batch."""

    model: BackboneConfig
    batch: int  # samples
    length: int  # tokens of a sample on this rank
    tensor: int  # tensor-parallel ranks
    sequence: bool  # sequence parallelism: norms and residual stream are split over these ranks too
    item: int  # bytes of an activation: 4 in fp32, 2 in bf16
    fused_norms: bool  # the device has one kernel for an RMSNorm
    compiled: bool = False  # layers are compiled: elementwise work is fused, and its intermediate results are not kept

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def segment(self) -> int:
        """T, or the sample's length when that is shorter."""
        return min(self.length, self.model.segment_length)

    @property
    def segments(self) -> int:
        """Segments of a sample on this rank."""
        return -(-self.length // self.segment)

    @property
    def windows(self) -> int:
        """Segments of all samples on this rank."""
        return self.batch * self.segments

    @property
    def window(self) -> int:
        """W, keys that a segment's tokens attend to."""
        return min(self.segment * self.model.attention_span, self.length)

    @property
    def norm_kept(self) -> float:
        """Bytes of a token that an RMSNorm keeps for the backward pass.

        A fused kernel keeps input and output; separate operations keep fp32 intermediates.
        """
        size = self.model.hidden_size
        return size * (2 * self.item if self.fused_norms else self.item + 2 * FP32) + FP32

    def states_kept(self, numbers: int) -> float:
        """Return the bytes of a token that a scan keeps, with fp32 states of `numbers` numbers.

        It keeps the state that enters each segment, twice, and the last one.
        """
        return FP32 * numbers * (2 * self.segments + 1) / self.segments / self.segment / self.tensor


class Speeds(Protocol):
    """Seconds of operations on one device, forward and backward together; precision: fp32 or bf16."""

    def linear(self, rows: int, inner: int, outer: int, precision: str) -> float:
        """A product of [rows, inner] and a weight [outer, inner], with both gradients."""

    def attention(self, windows: int, heads: int, queries: int, keys: int, width: int, precision: str) -> float:
        """Causal attention of `windows` windows; width: of a head."""

    def batched(self, batch: int, rows: int, inner: int, outer: int) -> float:
        """A batched fp32 product of [batch, rows, inner] and [batch, inner, outer]."""

    def passes(self, what: str, rows: int, size: float, item: int, width: int = 64) -> float:
        """The pattern `what` of `training.planning.passes` on [rows, size] numbers of `item` bytes.

        width: of a head, or tokens of a segment for patterns that work on segments.
        """

    def stream(self, size: float, array: float) -> float:
        """Reading or writing `size` bytes in arrays of `array` bytes."""


def scan_seconds(share: RankShare, speeds: Speeds, numbers: int) -> float:
    """Return the seconds of a scan over the segments of all samples, forward and backward.

    numbers: of one fp32 state on this rank.
    """
    size = share.windows * numbers * FP32
    return speeds.stream(SCAN_PASSES * size, size)
