"""What packed documents cost attention: the same shapes through each of PyTorch's kernels, bf16."""

import inspect
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_parts.common import Notes, Setting, seconds


def attention(setting: Setting, notes: Notes) -> None:
    """Forward and backward of one layer's attention in the 1.2 B Llama's shape, 16,384 tokens."""
    batch, length, heads, groups, width = (2, 32, 4, 2, 16) if setting.small else (8, 2048, 32, 8, 64)
    shapes = {"q": heads, "k": groups, "v": groups}
    tensors = [
        torch.randn(batch, h, length, width, device=setting.device, dtype=torch.bfloat16, requires_grad=True)
        for h in shapes.values()
    ]
    documents = (torch.arange(length, device=setting.device) >= length // 3).expand(batch, -1)
    mask = (documents.unsqueeze(2) == documents.unsqueeze(1)).tril().unsqueeze(1)
    useful = 12 * batch * heads * width * length**2 / 2  # the half that causality leaves, forward and backward
    notes.add(shape=[batch, heads, groups, length, width], ways={})
    for name, backend, masked in ways():
        found = timed(once(tensors, mask if masked else None), backend, setting, useful)
        notes.values["ways"][name] = found
        notes.line(way=name, **found)
        notes.add()
    found = timed(packed(tensors, documents), None, setting, useful)
    notes.values["ways"]["varlen"] = found
    notes.line(way="varlen", **found)
    notes.add(ok=any("ms" in way for way in notes.values["ways"].values()))


def ways() -> list[tuple[str, SDPBackend | None, bool]]:
    return [
        ("bool mask, PyTorch's choice", None, True),
        ("bool mask, mem-efficient", SDPBackend.EFFICIENT_ATTENTION, True),
        ("bool mask, cuDNN", SDPBackend.CUDNN_ATTENTION, True),
        ("causal without documents, flash", SDPBackend.FLASH_ATTENTION, False),
        ("causal without documents, cuDNN", SDPBackend.CUDNN_ATTENTION, False),
    ]


def timed(
    run: Callable[[], None], backend: SDPBackend | None, setting: Setting, useful: float
) -> dict[str, float | str]:
    try:
        if backend is None:
            return summary(run, setting, useful)
        with sdpa_kernel(backend):
            return summary(run, setting, useful)
    except (RuntimeError, ImportError) as error:  # PyTorch's answer where a kernel takes no such arguments
        return {"error": str(error).splitlines()[0][:200]}


def once(tensors: list[Tensor], mask: Tensor | None) -> Callable[[], None]:
    def run() -> None:
        q, k, v = tensors
        repeats = q.size(1) // k.size(1)
        if mask is not None:  # as the model does: no fused kernel takes a mask and grouped heads
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        grouped = mask is None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
        out.backward(out)

    return run


def packed(tensors: list[Tensor], documents: Tensor) -> Callable[[], None]:
    """Each run of one document [B, L] is a sequence of its own."""

    def run() -> None:
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in tensors)  # [B*L, H, d]
        more: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
        out: Any = varlen_attn(q, k, v, ends, ends, length, length, window_size=(-1, 0), **more)
        out.backward(out)

    length = documents.size(1)
    new = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True).flatten().nonzero().squeeze(1)
    ends = F.pad(new, (0, 1), value=documents.numel()).int()
    return run


def summary(run: Callable[[], None], setting: Setting, useful: float) -> dict[str, float | str]:
    for _ in range(3):
        run()
    median = statistics.median(seconds(run, setting.device) for _ in range(3 if setting.small else 20))
    return {"ms": median * 1e3, "tflops": useful / median / 1e12}
