"""What a memory kind is told when it says what it costs: one rank's share of the work, and how fast a device is."""

from dataclasses import dataclass
from typing import Protocol

from model.backbone import BackboneConfig

FP32 = 4  # bytes
SCAN_PASSES = 12  # reads and writes of the states, copies included


@dataclass(frozen=True)
class RankShare:
    """What one rank computes of a micro-batch."""

    model: BackboneConfig
    batch: int  # samples
    length: int  # tokens of a sample on this rank
    tensor: int  # ranks that share a layer
    sequence: bool  # norms and residual stream are split over them too
    item: int  # bytes of an activation: 4 in fp32, 2 in bf16
    fused_norms: bool  # the device has one kernel for an RMSNorm
    compiled: bool = False  # the layers are: elementwise work is fused, and its intermediate results are not kept

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def segment(self) -> int:
        """T, of a sample that may be shorter than a segment."""
        return min(self.length, self.model.segment_length)

    @property
    def segments(self) -> int:
        """Segments of a sample on this rank."""
        return -(-self.length // self.segment)

    @property
    def windows(self) -> int:
        """Segments of all samples."""
        return self.batch * self.segments

    @property
    def window(self) -> int:
        """W, keys that the tokens of a segment attend to."""
        return min(self.segment * self.model.attention_span, self.length)

    @property
    def norm_kept(self) -> float:
        """Bytes of a token that an RMSNorm keeps: its input and its output; without a kernel of its own, fp32
        intermediates."""
        size = self.model.hidden_size
        return size * (2 * self.item if self.fused_norms else self.item + 2 * FP32) + FP32

    def states_kept(self, numbers: int) -> float:
        """Bytes of a token where a scan keeps fp32 states of `numbers` numbers: the one that enters each segment, the
        last one, and a copy of each."""
        return FP32 * numbers * (2 * self.segments + 1) / self.segments / self.segment / self.tensor


class Speeds(Protocol):
    """Seconds of operations on one device, forward and backward together."""

    def linear(self, rows: int, inner: int, outer: int, precision: str) -> float:
        """[rows, inner] times a weight [outer, inner], with both gradients."""

    def attention(self, windows: int, heads: int, queries: int, keys: int, width: int, precision: str) -> float:
        """Causal attention."""

    def batched(self, batch: int, rows: int, inner: int, outer: int) -> float:
        """A batched fp32 product."""

    def passes(self, what: str, rows: int, size: float, item: int, width: int = 64) -> float:
        """The pattern `what` of `training.planning.passes` on [rows, size] numbers of `item` bytes; `width`: of a head,
        or tokens of a segment where the pattern goes by segments."""

    def stream(self, size: float, array: float) -> float:
        """`size` bytes read or written, in arrays of `array` bytes."""


def scan_seconds(share: RankShare, speeds: Speeds, numbers: int) -> float:
    """Seconds of a scan over the segments of all samples, forward and backward; `numbers`: of one fp32 state on this
    rank."""
    size = share.windows * numbers * FP32
    return speeds.stream(SCAN_PASSES * size, size)
