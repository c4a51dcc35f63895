"""This machine's CPU as a device whose products and passes are measured when a plan asks for them.

A rank has one core, as with `OMP_NUM_THREADS=1`, or `threads` cores. Each operation and size is measured once; a large
one is measured on fewer rows and scaled.
"""

import functools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model.linear import linear
from model.memory.planning import FP32
from training.distributed.devices import keep_freed_memory
from training.planning.devices import GB, GIB, Device
from training.planning.patterns import BY_SEGMENT, sample

MOST_WORK = 2e9  # most multiply-adds of one measurement, about a tenth of a second on a core
MOST_ELEMENTS = 1 << 22  # most elements when the optimizer is measured; more than a cache holds
MOST_NUMBERS = 1 << 24  # most elements when a pattern is measured
POOL = 1 << 27  # bytes over which passes are measured, because the activations of a step do not stay in a cache
SMALLEST_ARRAY = 1 << 14  # bytes; smaller arrays cost as much, because the call itself takes longer
REPEATS = 3  # the fastest of so many runs is used, because disturbances only slow a run down
LOOPBACK = 2 * GB  # bytes/s between two gloo ranks of one machine, in each direction


class Cpu(Device):
    """One rank's share of this machine; peak and bandwidth are measured on large arrays."""

    _measured: dict[tuple[object, ...], float]  # seconds, by operation and size

    def __init__(self, ranks: int, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        object.__setattr__(self, "_measured", {})  # a cache in an otherwise frozen dataclass
        side = 1024
        peak = {precision: 2 * side**3 / self._product(side, precision) for precision in ("fp32", "bf16")}
        size = float(POOL // 8)
        super().__init__(
            name="CPU",
            memory=_machine_memory() / ranks,
            peak=peak,
            bandwidth=size / self.stream(size, size),
            node_link=LOOPBACK,
            network_link=LOOPBACK,
            host_link=LOOPBACK,
            node_size=max(1, ranks),
            overhead=0.5 * GIB,  # torch, DeepSpeed and their libraries
            fused_norms=False,
        )

    def linear(self, rows: int, inner: int, outer: int, precision: str) -> float:
        """Return the seconds of the forward and backward of `model.linear` at this size."""
        rows, measured = max(1, rows), max(1, min(rows, int(MOST_WORK / 3 / (inner * outer)) or 1))
        weight = functools.partial(torch.randn, outer, inner, dtype=_dtype(precision), requires_grad=True)

        def measure() -> float:
            x = torch.randn(measured, inner, dtype=_dtype(precision), requires_grad=True)
            w = weight()
            dy = torch.randn(measured, outer, dtype=_dtype(precision))
            return _seconds(lambda: torch.autograd.grad(linear(x, w), (x, w), dy))

        return self._once(("linear", measured, inner, outer, precision), measure) * rows / measured

    def attention(self, windows: int, heads: int, queries: int, keys: int, width: int, precision: str) -> float:
        """Return the seconds of the forward and backward of torch's attention with a mask for documents."""
        work = heads * queries * keys * width * 6
        measured = max(1, min(windows, int(MOST_WORK / work)))

        def measure() -> float:
            shape, dtype = (measured, heads), _dtype(precision)
            q = torch.randn(*shape, queries, width, dtype=dtype, requires_grad=True)
            k, v = (torch.randn(*shape, keys, width, dtype=dtype, requires_grad=True) for _ in range(2))
            mask = torch.ones(measured, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
            dy = torch.randn_like(q)
            return _seconds(
                lambda: torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), (q, k, v), dy)
            )

        return self._once(("attention", measured, heads, queries, keys, width, precision), measure) * windows / measured

    def batched(self, batch: int, rows: int, inner: int, outer: int) -> float:
        """Return the seconds of the forward and backward of a batched fp32 product."""
        measured = max(1, min(batch, int(MOST_WORK / 3 / (rows * inner * outer)) or 1))

        def measure() -> float:
            x = torch.randn(measured, rows, inner, requires_grad=True)
            y = torch.randn(measured, inner, outer, requires_grad=True)
            dz = torch.randn(measured, rows, outer)
            return _seconds(lambda: torch.autograd.grad(x @ y, (x, y), dz))

        return self._once(("batched", measured, rows, inner, outer), measure) * batch / measured

    def stream(self, size: float, array: float) -> float:
        """Return the seconds to read or write `size` bytes, measured with sums of arrays of `array` bytes."""
        exponent = round(math.log2(min(max(array, SMALLEST_ARRAY), POOL // 8)))
        elements = (1 << exponent) // 4

        def measure() -> float:
            count = max(3, POOL // (4 * elements))
            arrays = list(torch.ones(count, elements).unbind())

            def passes() -> None:
                for a, b, c in zip(arrays[::3], arrays[1::3], arrays[2::3], strict=False):
                    torch.add(a, b, out=c)

            return _seconds(passes) / (count // 3 * 3 * 4 * elements)

        return size * self._once(("stream", exponent), measure)

    def passes(self, what: str, rows: int, size: float, item: int, width: int = 64) -> float:
        """Return the seconds of a pattern, measured on at most `MOST_NUMBERS` elements in whole segments."""
        columns, dtype = max(1, int(size)), torch.float32 if item == FP32 else torch.bfloat16
        unit = width if what in BY_SEGMENT else 1
        measured = min(rows, max(1, int(MOST_NUMBERS / columns) // unit) * unit)
        key = ("passes", what, measured, columns, width, item)
        return self._once(key, lambda: _seconds(sample(what, measured, columns, width, dtype))) * rows / measured

    def adamw(self, elements: float) -> float:
        """Return the seconds of torch's AdamW on so many elements, with clipping and the copies around it."""
        measured = int(min(max(elements, 1), MOST_ELEMENTS))

        def measure() -> float:
            weight = torch.zeros(measured, requires_grad=True)
            weight.grad = torch.ones(measured)
            optimizer = torch.optim.AdamW([weight], lr=1e-3)
            return _seconds(optimizer.step)

        own = self._once(("adamw", measured), measure) * elements / measured
        return own + self.stream(elements * 28, elements * 4)  # norm, clipping, flat gradients, weights copied back

    def assumptions(self) -> str:
        """Return a sentence with what was measured and assumed."""
        return (
            f"measured here with {torch.get_num_threads()} thread(s) a rank: products at "
            f"{self.peak['fp32'] / 1e9:.0f} GFLOP/s in fp32 and {self.peak['bf16'] / 1e9:.0f} in bf16 at best (the "
            f"plan uses each at its own size), memory at {self.bandwidth / GB:.1f} GB/s; assumed: {LOOPBACK / GB:.0f} "
            "GB/s between ranks; nothing overlaps"
        )

    def _product(self, side: int, precision: str) -> float:
        """Return the seconds of one product of two square matrices of `side` rows."""
        x: Tensor = torch.randn(side, side, dtype=_dtype(precision))
        return _seconds(lambda: linear(x, x))

    def _once(self, key: tuple[object, ...], measure: Callable[[], float]) -> float:
        if key not in self._measured:
            self._measured[key] = measure()
        return self._measured[key]


def _dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _seconds(function: Callable[[], object]) -> float:
    """Return the seconds of the fastest of `REPEATS` calls, after one call that is not measured."""
    function()
    fastest = math.inf
    for _ in range(REPEATS):
        begin = clock()
        function()
        fastest = min(fastest, clock() - begin)
    return fastest


def clock() -> float:
    """Return a time in seconds; with one thread its CPU time, so that other processes do not matter."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def _machine_memory() -> float:
    """Return the bytes of this machine's memory, or of the control group's limit where that is less."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return min(total, float(text)) if text.isdigit() else total
