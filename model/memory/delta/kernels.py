"""The delta rule by flash-linear-attention's kernel (extra `fla`), on GPUs and in half precision.

The kernel is called once a segment. Its output is not used, because tokens read the bank that earlier segments left.
A compiled layer needs the call as one operator. Only the kernel's public function is used, which returns no
intermediates, so the operator's backward pass computes the forward again.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

WIDEST = 256  # head width the kernel takes
# The copy of this file in an exported folder registers operators of its own and replaces no other copy's.
_NAMESPACE = __name__.replace(".", "_")
_Kernel = Callable[..., tuple[Tensor, Tensor]]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
@cache
def obstacle(device: torch.device) -> str | None:
    """Return why the kernel cannot run on `device`, or None when it can."""
    if device.type != "cuda":
        return "it needs a CUDA device"
    if importlib.util.find_spec("fla") is None or importlib.util.find_spec("triton") is None:
        return "it is not installed (extra fla)"
    version = importlib.metadata.version("triton")
    if torch.cuda.get_device_capability(device)[0] == 9 and not sound_on_hopper(version):
        return f"Triton {version} compiles its backward pass wrongly on this device; below 3.4 and from 3.7.1 are right"
    return None


def sound_on_hopper(triton: str) -> bool:
    """Whether this version of Triton compiles the kernel's backward pass correctly on H100 and H200."""
    numbers = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in triton.split("+")[0].split(".")[:3])
    return numbers < (3, 4) or numbers >= (3, 7, 1)


def takes(tokens: Tensor, width: int) -> bool:
    """Whether the kernel computes segments of these tokens with heads of `width`."""
    return tokens.dtype != torch.float32 and width <= WIDEST and obstacle(tokens.device) is None


@cache
def _kernel() -> _Kernel:
    # imported by name, so that an exported folder, which carries this file, does not require the package
    return importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule  # type: ignore[no-any-return]


@torch.library.custom_op(f"{_NAMESPACE}::delta_segment", mutates_args=())
def delta_segment(keys: Tensor, values: Tensor, log_alpha: Tensor, beta: Tensor, bank: Tensor) -> Tensor:
    """Return the bank after a segment, fp32 [B, H, d, d].

    Args: keys, values [B, T, H, d], of the tokens' dtype; log_alpha, beta fp32 [B, T, H]; bank fp32 [B, H, d, d].
    """
    with torch.no_grad():
        return _last(keys, values, log_alpha, beta, bank)


def _last(keys: Tensor, values: Tensor, log_alpha: Tensor, beta: Tensor, bank: Tensor) -> Tensor:
    operands = {"q": keys, "k": keys, "v": values, "g": log_alpha, "beta": beta}
    _, last = _kernel()(**operands, scale=1.0, initial_state=bank, output_final_state=True)
    return last


@delta_segment.register_fake
def _(keys: Tensor, values: Tensor, log_alpha: Tensor, beta: Tensor, bank: Tensor) -> Tensor:
    return torch.empty_like(bank)


@torch.library.custom_op(f"{_NAMESPACE}::delta_segment_backward", mutates_args=())
def delta_segment_backward(
    keys: Tensor, values: Tensor, log_alpha: Tensor, beta: Tensor, bank: Tensor, gradient: Tensor
) -> list[Tensor]:
    """Return the gradients of the five operands of `delta_segment`; gradient: of its result."""
    operands = [x.detach().requires_grad_() for x in (keys, values, log_alpha, beta, bank)]
    # a custom operator runs with autograd off; the kernel's own backward needs it on
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for key in (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView):
        exclude = exclude.remove(key)
    with torch._C._ForceDispatchKeyGuard(include, exclude), torch.enable_grad():
        return list(torch.autograd.grad(_last(*operands), operands, gradient))


@delta_segment_backward.register_fake
def _(*operands: Tensor) -> list[Tensor]:
    return [torch.empty_like(x) for x in operands[:-1]]


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
    return tuple(delta_segment_backward(*ctx.saved_tensors, gradient.contiguous()))


delta_segment.register_autograd(_backward, setup_context=_keep)
