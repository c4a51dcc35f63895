"""What a device can do at best, and how it is set up for that."""

import ctypes
import gc

import torch

# dense bf16 FLOP/s from the vendors' data sheets (no sparsity); the first name found in the device's name counts
PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of one device, or None where there is no agreed number (then no MFU is shown)."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_BF16.items() if key in name), None)


def use_device(device: torch.device) -> None:
    """Make a GPU this thread's own.  Every thread begins on the first one, where a context that a rank of another GPU
    makes by mistake takes memory."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def is_busy(device: torch.device) -> bool:
    """Return True while the default CUDA stream of `device` has unfinished kernels; False on a CPU.

    The watchdog uses it to tell waiting for other ranks from a hang.
    """
    try:
        return device.type == "cuda" and not torch.cuda.default_stream(device).query()
    except RuntimeError:  # it is broken; who asks explains another failure
        return False


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, as CUDA's allocator does; whether the C library can (glibc).

    glibc hands freed arrays of a megabyte back to the system and gets them again page by page; in a training step on a
    CPU that costs up to a third of the time (benchmarks/segments.py).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    return bool(mallopt(mmap_threshold, 1 << 30) and mallopt(trim_threshold, (1 << 31) - 1))


def keep_imports() -> None:
    """Let the garbage collector never look again at what exists now; to be called when all is imported.

    The half a million objects of torch and DeepSpeed stay for ever.  A full collection through them stops a rank, and
    all that wait for it, for a third of a second; without them it is milliseconds.
    """
    gc.collect()
    gc.freeze()
