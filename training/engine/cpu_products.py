"""Chooses the library of fp32 products on a CPU by a measurement at a run's start, which later starts here reuse.

The results of the libraries differ in the last bits. So rank 0 chooses for all ranks, and the measurement is kept in
the run's folder, so that a continued run computes as before, and in the cache folder, for other runs on this machine.
"""

import contextlib
import json
import platform
import time
from pathlib import Path

import torch

from data_prep.files import write_text
from model.linear import choose_library, linear
from training.checkpoint.remote import cache_folder
from training.config import RunConfig
from training.distributed.topology import Topology, broadcast

FILE = "products.json"  # measured ratios by processor, torch version, threads and size
MARGIN = 1.1  # the default BLAS is chosen only when it is so much faster, because measurements are noisy
TOKENS = 1024  # rows of the measured product; fewer when it would take long
MOST_FLOPS = 1e9  # of the product's forward and backward, about 30 ms on one thread
ROUNDS = 5


def choose_cpu_products(config: RunConfig, topology: Topology) -> str | None:
    """Choose the library of this process; return a line that says which and why, None without a choice. Collective."""
    if topology.device.type != "cpu" or config.training.precision != "fp32" or not choose_library(onednn=True):
        return None
    line = broadcast(_line(config) if topology.info.rank == 0 else "")
    choose_library(onednn=line.startswith("oneDNN"))
    return f"fp32 products on the CPU: {line}"


def _line(config: RunConfig) -> str:
    rows, inner, outer = _size(config)
    size = f"[{rows}, {inner}] x [{inner}, {outer}]"
    key = f"{_processor()}; torch {torch.__version__}; {torch.get_num_threads()} threads; {size}"
    places = config.run.folder / FILE, cache_folder() / FILE  # the run's own counts first
    known = next((path for path in places if key in _read(path)), None)
    ratio = _read(known)[key] if known else measure(rows, inner, outer)
    for path in places:
        with contextlib.suppress(OSError):  # the folder cannot be written: the next start measures again
            if key not in (kept := _read(path)):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps(kept | {key: ratio}, indent=1))
    library = "oneDNN" if ratio * MARGIN > 1 else "torch's default BLAS"
    source = f"as {known} has it" if known else "measured now"
    return f"{library}; the default takes {ratio:.2f} of oneDNN's time for {size}, {source}"


def measure(rows: int, inner: int, outer: int) -> float:
    """Return the time of the default BLAS over that of oneDNN for a product [rows, inner] x [inner, outer].

    Forward and backward are measured.
    """
    generator = torch.Generator().manual_seed(0)  # so that the run's own random numbers do not change
    x, weight, gradient = (
        torch.randn(*shape, generator=generator) for shape in ((rows, inner), (outer, inner), (rows, outer))
    )
    operands = x.requires_grad_(), weight.requires_grad_()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(1 + ROUNDS):  # alternating; the first round only warms up
        for onednn, taken in seconds.items():
            choose_library(onednn)
            began = time.perf_counter()
            torch.autograd.grad(linear(*operands), operands, gradient)
            taken.append(time.perf_counter() - began)
    ours, default = (min(seconds[library][1:]) for library in (True, False))  # other processes only add time
    return default / ours


def _size(config: RunConfig) -> tuple[int, int, int]:
    """Return rows, inner and outer size of the feed-forward's first product.

    They do not depend on the topology, so that all topologies choose the same library.
    """
    inner, outer = config.model.hidden_size, 2 * config.model.ffn_size
    return max(32, min(TOKENS, int(MOST_FLOPS / (6 * inner * outer)))), inner, outer


def _read(path: Path) -> dict[str, float]:
    """Return the ratios measured before; empty when the file is missing or damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {key: float(ratio) for key, ratio in kept.items() if float(ratio) > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
