"""Which library computes fp32 products on a CPU: measured at a run's start, kept for later starts on this machine.

Their results differ in the last bits.  So rank 0 chooses for all ranks, and a later start takes the same library
without measuring again.
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

FILE = "products.json"  # what was measured, by processor, torch, threads and size
MARGIN = 1.1  # the default BLAS must be so much faster: what a noisy measurement cannot say is left to oneDNN
TOKENS = 1024  # of the product, or fewer where it would take long
MOST_FLOPS = 1e9  # of its forward and backward, about 30 ms of one thread
ROUNDS = 5


def choose_cpu_products(config: RunConfig, topology: Topology) -> str | None:
    """Choose the library of this process and say which and why; None where there is no choice.  Collective."""
    if topology.device.type != "cpu" or config.training.precision != "fp32" or not choose_library(onednn=True):
        return None
    line = broadcast(_line(config) if topology.info.rank == 0 else "")
    choose_library(onednn=line.startswith("oneDNN"))
    return f"fp32 products on the CPU: {line}"


def _line(config: RunConfig) -> str:
    rows, inner, outer = _size(config)
    size, path = f"[{rows}, {inner}] x [{inner}, {outer}]", cache_folder() / FILE
    key = f"{_processor()}; torch {torch.__version__}; {torch.get_num_threads()} threads; {size}"
    kept = _read(path)
    known = key in kept
    ratio = kept[key] if known else measure(rows, inner, outer)
    if not known:
        with contextlib.suppress(OSError):  # no room or no right to write there: the next start measures again
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(_read(path) | {key: ratio}, indent=1))
    library = "oneDNN" if ratio * MARGIN > 1 else "torch's default BLAS"
    source = f"as {path} has it" if known else "measured now"
    return f"{library}; the default takes {ratio:.2f} of oneDNN's time for {size}, {source}"


def measure(rows: int, inner: int, outer: int) -> float:
    """Time of the default BLAS over oneDNN's, for [rows, inner] by [inner, outer], forward and backward."""
    generator = torch.Generator().manual_seed(0)  # the run's own random numbers stay what they are
    x, weight, gradient = (
        torch.randn(*shape, generator=generator) for shape in ((rows, inner), (outer, inner), (rows, outer))
    )
    operands = x.requires_grad_(), weight.requires_grad_()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(1 + ROUNDS):  # in turns; the first makes each library ready
        for onednn, taken in seconds.items():
            choose_library(onednn)
            began = time.perf_counter()
            torch.autograd.grad(linear(*operands), operands, gradient)
            taken.append(time.perf_counter() - began)
    ours, default = (min(seconds[library][1:]) for library in (True, False))  # what else runs only adds time
    return default / ours


def _size(config: RunConfig) -> tuple[int, int, int]:
    """The feed-forward's first product, the same for every topology: none may take another library than the others."""
    inner, outer = config.model.hidden_size, 2 * config.model.ffn_size
    return max(32, min(TOKENS, int(MOST_FLOPS / (6 * inner * outer)))), inner, outer


def _read(path: Path) -> dict[str, float]:
    """What was measured before; nothing where the file is missing or damaged."""
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
