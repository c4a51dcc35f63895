"""A device's peak FLOP/s, and settings of the process that make training on it faster."""

import ctypes
import gc

import torch

from training.planning.devices import PEAK_BF16


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the dense peak FLOP/s of `device` in `precision`.

    None when the data sheet's value is not known, and for fp32 and CPUs; no MFU is shown then.
    """
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_BF16.items() if key in name), None)


def use_device(device: torch.device) -> None:
    """Make `device` the current GPU of this thread; do nothing for a CPU.

    Every new thread starts on GPU 0. A CUDA call from such a thread would create a context there, which takes memory of
    another rank.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def is_busy(device: torch.device) -> bool:
    """Return True while the default CUDA stream of `device` has unfinished kernels; False on a CPU.

    The watchdog uses it to tell waiting for other ranks from a hang.
    """
    try:
        return device.type == "cuda" and not torch.cuda.default_stream(device).query()
    except RuntimeError:  # the device is broken: the caller reports another failure, which must not be replaced
        return False


def keep_freed_memory() -> bool:
    """Make the C library keep memory that is freed, as CUDA's allocator does; return whether it can (only glibc).

    By default glibc returns freed arrays of a megabyte to the system and gets them back page by page. In a training
    step on a CPU this takes up to a third of the time (benchmarks/segments.py).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    return bool(mallopt(mmap_threshold, 1 << 30) and mallopt(trim_threshold, (1 << 31) - 1))


def keep_imports() -> None:
    """Exclude all objects that exist now from garbage collection; call it when all modules are imported.

    torch and DeepSpeed create half a million objects that are never freed. A full collection that visits them stops a
    rank, and all ranks that wait for it, for a third of a second; a collection without them takes milliseconds.
    """
    gc.collect()
    gc.freeze()
