"""What a device can do, and what of it a training step is assumed to reach.  All assumptions about speed are here."""

import math
from dataclasses import dataclass

from training.errors import ConfigError
from training.planning.passes import PASSES

GIB, GB = 2.0**30, 1e9

# What an eager bf16 step reaches of a data sheet's numbers.  They are assumptions, said in every plan: large products
# run at about two thirds of the dense peak on all four devices, elementwise kernels at four fifths of the memory's
# bandwidth, NCCL's rings at about 70 % of the links'.
PRODUCT_EFFICIENCY, STREAM_EFFICIENCY, LINK_EFFICIENCY = 0.65, 0.8, 0.7
ATTENTION_EFFICIENCY = 0.4  # of the peak, for the half of the window that the mask leaves
COLLECTIVE_LATENCY = 20e-6  # seconds to start one, for every doubling of its ranks
HEADROOM = 0.96  # of the memory: the allocator's blocks are never filled to the last byte
ADAMW_BYTES = 110  # an element's optimizer step: 20 passes of AdamW over fp32, norm, clipping, and copies of gradients


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

    def linear(self, rows: int, inner: int, outer: int, precision: str) -> float:
        """Seconds of a linear layer's forward and backward: three products of [rows, inner] by [inner, outer]."""
        return 6.0 * rows * inner * outer / (self.peak[precision] * PRODUCT_EFFICIENCY)

    def attention(self, windows: int, heads: int, queries: int, keys: int, width: int, precision: str) -> float:
        """Seconds of causal attention's forward and backward; `windows`: of all samples and segments."""
        seen = queries * (keys - queries / 2)  # (query, key) pairs of a window
        return 12.0 * windows * heads * seen * width / (self.peak[precision] * ATTENTION_EFFICIENCY)

    def batched(self, batch: int, rows: int, inner: int, outer: int) -> float:
        """Seconds of an fp32 batched product's forward and backward."""
        return 6.0 * batch * rows * inner * outer / (self.peak["fp32"] * PRODUCT_EFFICIENCY)

    def stream(self, size: float, array: float) -> float:
        """Seconds to read or write `size` bytes in arrays of `array` bytes."""
        del array  # no cache holds a GPU's activations
        return size / (self.bandwidth * STREAM_EFFICIENCY)

    def passes(self, what: str, rows: int, size: float, item: int, width: int = 64) -> float:
        """Seconds of the pattern `what` of `training.planning.patterns` on [rows, size] numbers of `item` bytes."""
        del width
        return self.stream(PASSES[what] * rows * size * item, rows * size * item)

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
            f"assumed: products at {PRODUCT_EFFICIENCY:.0%} of {self.name}'s dense peak, attention at "
            f"{ATTENTION_EFFICIENCY:.0%}, elementwise work at {STREAM_EFFICIENCY:.0%} of its memory bandwidth, links "
            f"at {LINK_EFFICIENCY:.0%}; nothing overlaps"
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


def parse_devices(text: str) -> tuple[str, int]:
    """`NAME:COUNT` -> the name, lower case, and the count; raises `ConfigError` for another form or name."""
    name, colon, count = text.lower().partition(":")
    names = [*DEVICES, "cpu"]
    if name not in names or not (count.isascii() and count.isdigit() and int(count) if colon else True):
        raise ConfigError(f"--devices: '{text}' must be NAME or NAME:COUNT, such as h200:64; names: {', '.join(names)}")
    return name, int(count) if colon else 1
