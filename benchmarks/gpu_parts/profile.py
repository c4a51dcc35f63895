"""Where a step's time goes, and which attention kernels ran."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from benchmarks.gpu_parts.common import seconds

TOP = 15
ATTENTION = {  # PyTorch's name of the operation -> what it is
    "torch_attn::_varlen_attn": "varlen",
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_flash_attention_for_cpu": "flash (CPU)",
    "_scaled_dot_product_efficient_attention": "mem-efficient",
    "_scaled_dot_product_cudnn_attention": "cuDNN",
    "_scaled_dot_product_attention_math": "math",
    "_scaled_dot_product_fused_attention_overrideable": "other",
}


def profile(step: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """One step: its most expensive kernels, their share of all kernel time, and how long the device was busy."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    with torch_profile(activities=activities) as recorded:
        wall = seconds(step, device)
    averages = recorded.key_averages()
    wanted = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    kernels = [
        (event.key, event.count, (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3)
        for event in averages
        # an annotation stands on the device's line too, over the kernels it covers
        if event.device_type == wanted and not getattr(event, "is_user_annotation", False)
    ]
    total = sum(ms for _, _, ms in kernels)
    kernels.sort(key=lambda kernel: -kernel[2])
    found = {event.key.removeprefix("aten::"): event.count for event in averages}
    return {
        "attention": {what: found[name] for name, what in ATTENTION.items() if name in found},
        "attention_kernels": sorted({key[:120] for key, _, _ in kernels if is_attention_kernel(key)}),
        "kernel_ms": total,
        "wall_ms": wall * 1e3,
        "kernels": sum(count for _, count, _ in kernels),
        "top": [
            {"kernel": key[:160], "calls": count, "ms": ms, "share": ms / total if total else None}
            for key, count, ms in kernels[:TOP]
        ],
    }


def is_attention_kernel(name: str) -> bool:
    return any(part in name.lower() for part in ("flash", "fmha", "sdpa", "mem_eff"))
