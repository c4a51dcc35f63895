"""Data sheets of devices, and the fraction of them that a training step is assumed to reach."""

import math
from dataclasses import dataclass

from training.errors import ConfigError
from training.planning.passes import FUSED, PASSES

GIB, GB = 2.0**30, 1e9

# Fraction of a data sheet's numbers that a bf16 step reaches. Those of products, elementwise kernels and attention are
# measured in a compiled step on one H200 (torch 2.11, 2026-11-27), and assumed for the other devices. That NCCL's rings
# reach about 70 % of the links' bandwidth is an assumption. Every plan prints both.
PRODUCT_EFFICIENCY, STREAM_EFFICIENCY, LINK_EFFICIENCY = 0.78, 0.5, 0.7
ATTENTION_EFFICIENCY = 0.26  # of the peak, in long sequences; FLOPs are counted for the half that the mask leaves
ATTENTION_HALF = 1500  # tokens of a sequence in which FlashAttention-2 reaches half of that
COLLECTIVE_LATENCY = 20e-6  # seconds to start a collective, for every doubling of its ranks
HEADROOM = 0.96  # fraction of the memory for tensors, because the allocator's blocks are never completely full
# bytes read and written for an element in a step: weight, gradient and moments by one kernel, norm, clipping, bf16 copy
ADAMW_BYTES = 44


@dataclass(frozen=True)
class Device:
    """A GPU's data sheet; rates are per second and device, those of links in one direction."""

    name: str
    memory: float  # bytes that torch reports
    peak: dict[str, float]  # dense FLOP/s by precision
    bandwidth: float  # of its memory, bytes/s
    node_link: float  # to the devices of its node, bytes/s
    network_link: float  # its share of the node's network cards, bytes/s
    host_link: float  # to CPU memory, bytes/s
    node_size: int  # devices of a node
    overhead: float = 2 * GIB  # CUDA context, cuBLAS and NCCL workspaces
    fused_norms: bool = True  # torch computes an RMSNorm with one kernel; on a CPU it takes several
    compiled: bool = False  # decoder layers and loss are compiled
    tf32: bool = False  # fp32 products are computed in TF32, at half the speed of bf16
    document_tokens: float = math.inf  # tokens of each document, beyond which attention does not look

    def linear(self, rows: int, inner: int, outer: int, precision: str) -> float:
        """Return the seconds of a linear layer's forward and backward: three products of [rows, inner, outer]."""
        return 6.0 * rows * inner * outer / (self.peak[precision] * PRODUCT_EFFICIENCY)

    def attention(self, windows: int, heads: int, queries: int, keys: int, width: int, precision: str) -> float:
        """Return the seconds of causal attention's forward and backward.

        windows: number of attention windows in all samples and segments; width: of a head.
        """
        length = min(queries, self.document_tokens)
        ahead = min(keys - queries, self.document_tokens - length)
        seen = queries * (ahead + length / 2)  # (query, key) pairs of a window
        reached = ATTENTION_EFFICIENCY * length / (length + ATTENTION_HALF)
        return 12.0 * windows * heads * seen * width / (self.peak[precision] * reached)

    def batched(self, batch: int, rows: int, inner: int, outer: int) -> float:
        """Return the seconds of the forward and backward of `batch` fp32 products [rows, inner] x [inner, outer]."""
        peak = self.peak["bf16"] / 2 if self.tf32 else self.peak["fp32"]
        return 6.0 * batch * rows * inner * outer / (peak * PRODUCT_EFFICIENCY)

    def stream(self, size: float, array: float) -> float:
        """Return the seconds to read or write `size` bytes in arrays of `array` bytes."""
        del array  # activations on a GPU are larger than its caches, whatever the size of an array
        return size / (self.bandwidth * STREAM_EFFICIENCY)

    def passes(self, what: str, rows: int, size: float, item: int, width: int = 64) -> float:
        """Return the seconds of the pattern `what` on an array [rows, size] of elements of `item` bytes.

        width: as in `training.planning.patterns.sample`.
        """
        del width
        count = FUSED.get(what, PASSES[what]) if self.compiled else PASSES[what]
        return self.stream(count * rows * size * item, rows * size * item)

    def adamw(self, elements: float) -> float:
        """Return the seconds of AdamW's step on so many elements."""
        return self.stream(elements * ADAMW_BYTES, elements)

    def link(self, ranks: int, stride: int) -> float:
        """Return the bytes/s that a rank sends in a ring of `ranks` ranks, of which neighbours are `stride` apart.

        Ranks of one node share its network cards.
        """
        inside = max(1, self.node_size // stride)
        if ranks <= inside:
            return self.node_link * LINK_EFFICIENCY
        return min(self.node_link, self.network_link * inside) * LINK_EFFICIENCY

    def collective(self, size: float, ranks: int, stride: int) -> float:
        """Return the seconds of a collective in which each rank sends `size` bytes."""
        return 0.0 if ranks == 1 else size / self.link(ranks, stride) + COLLECTIVE_LATENCY * math.log2(ranks)

    @property
    def usable(self) -> float:
        """Bytes available for tensors."""
        return self.memory * HEADROOM

    def assumptions(self) -> str:
        """Return a sentence with the assumptions of plans on this device."""
        return (
            f"assumed, as measured on one H200: products at {PRODUCT_EFFICIENCY:.0%} of {self.name}'s dense peak, "
            f"attention at {ATTENTION_EFFICIENCY:.0%} and less in short documents, elementwise work at "
            f"{STREAM_EFFICIENCY:.0%} of its memory bandwidth; not measured: links at {LINK_EFFICIENCY:.0%}; nothing "
            "overlaps"
        )


# dense bf16 FLOP/s from the vendors' data sheets (no sparsity), by a part of the device's name
PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}


def _gpu(name: str, gib: float, fp32: float, memory: float, node: float, network: float, host: float) -> Device:
    peak = {"bf16": PEAK_BF16[name], "fp32": fp32 * 1e12}
    return Device(name, gib * GIB, peak, memory * GB, node * GB, network * GB, host * GB, node_size=8)


# Vendors' data sheets of SXM boards in machines of 8: fp32 TFLOP/s, memory (GiB as torch reports it) and its GB/s; GB/s
# of NVLink, of one network card for each GPU (200 Gb/s with A100, else 400 Gb/s), and of PCIe
DEVICES = {
    "a100": _gpu("A100", 79.1, 19.5, 2039, 300, 25, 32),
    "h100": _gpu("H100", 79.1, 67, 3350, 450, 50, 64),
    "h200": _gpu("H200", 139.7, 67, 4800, 450, 50, 64),
    "b200": _gpu("B200", 178.3, 75, 7700, 900, 50, 64),
}


MOST_DEVICES = 1_000_000


def parse_devices(text: str) -> tuple[str, int]:
    """Return the lower-case name and the count of `NAME:COUNT`. Raises `ConfigError` for another form or name."""
    name, colon, count = text.lower().partition(":")
    names = [*DEVICES, "cpu"]
    if name not in names or not (
        count.isascii() and count.isdigit() and len(count) < 100 and int(count) if colon else True
    ):
        raise ConfigError(f"--devices: '{text}' must be NAME or NAME:COUNT, such as h200:64; names: {', '.join(names)}")
    if colon and int(count) > MOST_DEVICES:
        raise ConfigError(f"--devices: '{text}' is more than {MOST_DEVICES:,} devices, the most that are planned for")
    return name, int(count) if colon else 1
