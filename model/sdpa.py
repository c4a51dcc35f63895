"""The attention kernels: torch's scaled dot product attention, and its varlen attention over unequal sequences."""

import contextlib
import importlib.util
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # older torch versions, on which exported folders run too
    varlen_attn = None  # type: ignore[assignment]

# without cuDNN, whose backward pass with a mask returns NaN for some lengths and raises no error
_MASKED = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# torch 2.11 accepts grouped heads without this argument
_GROUPED = varlen_attn is not None and "enable_gqa" in inspect.signature(varlen_attn).parameters
_WIDEST = 256  # head width that FlashAttention takes


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax attention [B, H, n, d].

    Args: q [B, H, n, d]; k and v [B, Hkv, W, d], Hkv divides H; mask: bool, broadcast to [B, H, n, W], True = may
        attend; None: causal, n = W.
    """
    group = q.size(1) // k.size(1)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=group > 1)
    if q.is_cuda and group > 1:  # no fused kernel takes both a mask and grouped heads
        k, v, group = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1), 1
    with sdpa_kernel(_MASKED) if q.is_cuda else contextlib.nullcontext():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=group > 1)


def varlen(q: Tensor, k: Tensor, v: Tensor, cuts: tuple[Tensor, Tensor], longest: tuple[int, int]) -> Tensor:
    """Return causal attention inside each of N sequences [queries, H, d]; queries are aligned with the last keys.

    Args: q [queries, H, d]; k and v [keys, Hkv, d]; cuts: int32 [N + 1] each, where the sequences' queries and keys
        begin, and the end of the last; longest: upper bounds of a sequence's queries and keys.
    """
    more: dict[str, Any] = {"enable_gqa": True} if _GROUPED and q.size(1) > k.size(1) else {}
    out: Tensor = varlen_attn(q, k, v, *cuts, *longest, window_size=(-1, 0), **more)  # type: ignore[assignment]
    return out


def serves_varlen(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether `varlen` has a kernel for this device, dtype and head width."""
    if varlen_attn is None or device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return width % 8 == 0 and width <= _WIDEST and torch.cuda.get_device_capability(device) >= (8, 0)


def activate_flash_attention_3(device: torch.device) -> bool:
    """Switch the whole process to FlashAttention-3, and return whether that was possible.

    It needs a Hopper GPU (H100, H200) and the package flash_attn_interface.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return False
    if importlib.util.find_spec("flash_attn_interface") is None:
        return False
    try:
        from torch.nn.attention import activate_flash_attention_impl

        activate_flash_attention_impl("FA3")
    except (ImportError, RuntimeError, ValueError):  # torch has no such choice, or the package has no kernels
        return False
    return True
