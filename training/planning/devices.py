"""What a device can do, and what of it a training step is assumed to reach.  All assumptions about speed are here."""

import math
from dataclasses import dataclass

from training.errors import ConfigError
from training.planning.passes import FUSED, PASSES

GIB, GB = 2.0**30, 1e9

# What a bf16 step reaches of a data sheet's numbers.  Products, elementwise kernels and attention: as measured in a
# compiled step on one H200 (torch 2.11, 2026-11-27), and assumed of the other devices; that NCCL's rings reach about
# 70 % of the links' speed is an assumption.  Every plan says so.
PRODUCT_EFFICIENCY, STREAM_EFFICIENCY, LINK_EFFICIENCY = 0.78, 0.5, 0.7
ATTENTION_EFFICIENCY = 0.26  # of the peak, in long sequences, for the half of the window that causality leaves
ATTENTION_HALF = 1500  # tokens of a sequence in which FlashAttention-2 reaches half of that
COLLECTIVE_LATENCY = 20e-6  # seconds to start one, for every doubling of its ranks
HEADROOM = 0.96  # of the memory: the allocator's blocks are never filled to the last byte
ADAMW_BYTES = 44  # an element's optimizer step: weight, gradient and moments by one kernel, norm, clipping, bf16 copy


@dataclass(frozen=True)
class Device:
    """A GPU's data sheet; rates are per second and device, links one way."""

    name: str
    memory: float  # bytes that torch reports
    peak: dict[str, float]  # dense FLOP/s by precision
    bandwidth: float  # of its memory, bytes/s
    node_link: float  # to the devices of its node, bytes/s
    network_link: float  # its share of the node's network cards, bytes/s
    host_link: float  # to CPU memory, bytes/s
    node_size: int  # devices of a node
    overhead: float = 2 * GIB  # CUDA context, cuBLAS and NCCL workspaces
    fused_norms: bool = True  # torch has one kernel for an RMSNorm; on a CPU it is a handful
    compiled: bool = False  # what runs on it is
    tf32: bool = False  # its fp32 products are computed in TF32, at half the speed of bf16
    document_tokens: float = math.inf  # of each document, which attention does not look beyond: of the data, not of it

    def linear(self, rows: int, inner: int, outer: int, precision: str) -> float:
        """Seconds of a linear layer's forward and backward: three products of [rows, inner] by [inner, outer]."""
        return 6.0 * rows * inner * outer / (self.peak[precision] * PRODUCT_EFFICIENCY)

    def attention(self, windows: int, heads: int, queries: int, keys: int, width: int, precision: str) -> float:
        """Seconds of causal attention's forward and backward; `windows`: of all samples and segments."""
        length = min(queries, self.document_tokens)
        ahead = min(keys - queries, self.document_tokens - length)
        seen = queries * (ahead + length / 2)  # (query, key) pairs of a window
        reached = ATTENTION_EFFICIENCY * length / (length + ATTENTION_HALF)
        return 12.0 * windows * heads * seen * width / (self.peak[precision] * reached)

    def batched(self, batch: int, rows: int, inner: int, outer: int) -> float:
        """Seconds of an fp32 batched product's forward and backward."""
        peak = self.peak["bf16"] / 2 if self.tf32 else self.peak["fp32"]
        return 6.0 * batch * rows * inner * outer / (peak * PRODUCT_EFFICIENCY)

    def stream(self, size: float, array: float) -> float:
        """Seconds to read or write `size` bytes in arrays of `array` bytes."""
        del array  # no cache holds a GPU's activations
        return size / (self.bandwidth * STREAM_EFFICIENCY)

    def passes(self, what: str, rows: int, size: float, item: int, width: int = 64) -> float:
        """Seconds of the pattern `what` of `training.planning.patterns` on [rows, size] numbers of `item` bytes."""
        del width
        count = FUSED.get(what, PASSES[what]) if self.compiled else PASSES[what]
        return self.stream(count * rows * size * item, rows * size * item)

    def adamw(self, elements: float) -> float:
        """Seconds of an optimizer step on that many elements."""
        return self.stream(elements * ADAMW_BYTES, elements)

    def link(self, ranks: int, stride: int) -> float:
        """Bytes/s a rank sends in a ring of `ranks`, neighbours `stride` ranks apart: a node's members share their
        network cards."""
        inside = max(1, self.node_size // stride)
        if ranks <= inside:
            return self.node_link * LINK_EFFICIENCY
        return min(self.node_link, self.network_link * inside) * LINK_EFFICIENCY

    def collective(self, size: float, ranks: int, stride: int) -> float:
        """Seconds of a collective in which a rank sends `size` bytes."""
        return 0.0 if ranks == 1 else size / self.link(ranks, stride) + COLLECTIVE_LATENCY * math.log2(ranks)

    @property
    def usable(self) -> float:
        """Bytes that tensors may take."""
        return self.memory * HEADROOM

    def assumptions(self) -> str:
        """What a plan on this device takes for granted."""
        return (
            f"assumed, as measured on one H200: products at {PRODUCT_EFFICIENCY:.0%} of {self.name}'s dense peak, "
            f"attention at {ATTENTION_EFFICIENCY:.0%} and less in short documents, elementwise work at "
            f"{STREAM_EFFICIENCY:.0%} of its memory bandwidth; not measured: links at {LINK_EFFICIENCY:.0%}; nothing "
            "overlaps"
        )


def _gpu(
    name: str, gib: float, bf16: float, fp32: float, memory: float, node: float, network: float, host: float
) -> Device:
    peak = {"bf16": bf16 * 1e12, "fp32": fp32 * 1e12}
    return Device(name, gib * GIB, peak, memory * GB, node * GB, network * GB, host * GB, node_size=8)


# Vendors' data sheets of the SXM boards in machines of 8: dense bf16 (as devices.PEAK_BF16) and fp32 TFLOP/s,
# memory (GiB as torch reports it) and its GB/s, NVLink, a network card a GPU (200 Gb/s with A100, else 400 Gb/s), PCIe
DEVICES = {
    "a100": _gpu("A100", 79.1, 312, 19.5, 2039, 300, 25, 32),
    "h100": _gpu("H100", 79.1, 989, 67, 3350, 450, 50, 64),
    "h200": _gpu("H200", 139.7, 989, 67, 4800, 450, 50, 64),
    "b200": _gpu("B200", 178.3, 2250, 75, 7700, 900, 50, 64),
}


MOST_DEVICES = 1_000_000


def parse_devices(text: str) -> tuple[str, int]:
    """`NAME:COUNT` -> the name, lower case, and the count; raises `ConfigError` for another form or name."""
    name, colon, count = text.lower().partition(":")
    names = [*DEVICES, "cpu"]
    if name not in names or not (
        count.isascii() and count.isdigit() and len(count) < 100 and int(count) if colon else True
    ):
        raise ConfigError(f"--devices: '{text}' must be NAME or NAME:COUNT, such as h200:64; names: {', '.join(names)}")
    if colon and int(count) > MOST_DEVICES:
        raise ConfigError(f"--devices: '{text}' is more than {MOST_DEVICES:,} devices, the most that are planned for")
    return name, int(count) if colon else 1
