"""The matrix product of every layer: `F.linear`, except in fp32 on a CPU, where oneDNN may be faster.

torch computes fp32 products on x86 with MKL, which takes up to twice as long as oneDNN on some processors and as long
on others (benchmarks/linear.py). A training run measures which is faster (`training.engine.cpu_products`). For other
dtypes and devices torch uses the fastest library.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_MIN_ROWS = 32  # with fewer rows the call costs more than it saves


def _onednn_available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


_library = {"onednn": _onednn_available()}  # of fp32 products on a CPU, for the whole process


def choose_library(onednn: bool) -> bool:
    """Send fp32 products on a CPU to oneDNN from now on, or to torch's default BLAS.

    Returns whether it is oneDNN now, which not every build of torch has.
    """
    _library["onednn"] = onednn and _onednn_available()
    return _library["onednn"]


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return x [..., in] times weight [out, in]: [..., out]."""
    ours = _library["onednn"] and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if ours and not torch.compiler.is_compiling():  # a compiled graph cannot contain the operator
        rows = x.reshape(-1, x.size(-1))
        if rows.size(0) >= _MIN_ROWS:
            return _OneDnnLinear.apply(rows, weight).view(*x.shape[:-1], weight.size(0))
    return F.linear(x, weight)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    """y = x W^T; dx = dy W; dW = dy^T x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = _product(dy, weight.t()) if ctx.needs_input_grad[0] else None
        dw = _product(dy.t(), x.t()) if ctx.needs_input_grad[1] else None
        return dx, dw
