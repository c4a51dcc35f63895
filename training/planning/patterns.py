"""Runnable samples of the patterns in `training.planning.passes`, to be measured on a CPU.

Counting bytes is not enough on a CPU: reading every second element takes ten times as long as reading neighbours.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BY_SEGMENT = ("mask", "decaying keys", "queries", "gates", "gates twice", "slot gates")  # need rows of whole segments


def sample(what: str, rows: int, size: int, width: int, dtype: torch.dtype) -> Callable[[], object]:
    """Return a function that runs the pattern `what` once, forward and backward, on an array [rows, size].

    width: width of a head for "heads", tokens of a segment for the patterns in `BY_SEGMENT`.
    """
    if what == "mask":
        documents = torch.zeros(max(1, rows // width), width, dtype=torch.int64)
        causal = torch.ones(width, size, dtype=torch.bool).tril(size - width)
        keys = torch.zeros(len(documents), size, dtype=torch.int64)
        return lambda: (documents[:, :, None] == keys[:, None, :]) & causal
    x = torch.randn(rows, size, dtype=dtype, requires_grad=True)
    weight = torch.ones(size, dtype=dtype, requires_grad=True)
    other, labels = torch.randn_like(x, requires_grad=True), torch.zeros(rows, dtype=torch.int64)
    function = {
        "norm": lambda: F.rms_norm(x, (size,), weight, 1e-5),
        "residual": lambda: x + other,
        "heads": lambda: _heads(x, width),
        "swiglu": lambda: _swiglu(x),
        "loss": lambda: F.cross_entropy(x.float(), labels),
        "decaying keys": lambda: _keys(x, width),
        "queries": lambda: _normalised(_by_segment(x, width)).contiguous(),
        "gates": lambda: _gates(x, width),
        "gates twice": lambda: _gates(_gates(x, width), width),
        "slot gates": lambda: _gates(x, width),
    }[what]

    def forward_and_backward() -> None:
        y = function()
        y.backward(torch.ones_like(y))

    return forward_and_backward


def _heads(qkv: Tensor, width: int) -> Tensor:
    """Rotate two thirds of the heads (queries and keys), and concatenate the rest (values)."""
    heads = qkv.unflatten(-1, (-1, width))
    rotated, values = heads.split((heads.size(1) - heads.size(1) // 3, heads.size(1) // 3), dim=1)
    cos = torch.ones(qkv.size(0), 1, width // 2, dtype=qkv.dtype)
    first, second = rotated.chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * cos, second * cos + first * cos), dim=-1)
    return torch.cat((rotated, values), dim=1).transpose(0, 1).contiguous()


def _swiglu(x: Tensor) -> Tensor:
    gate, up = x.unflatten(-1, (-1, 2)).unbind(-1)
    return F.silu(gate) * up


def _by_segment(x: Tensor, tokens: int) -> Tensor:
    """Reshape [rows, size] to fp32 [segments, heads, tokens, at most 64]."""
    width = next(w for w in (64, 32, 16, 8, 4, 2, 1) if x.size(1) % w == 0)
    return x.float().unflatten(0, (-1, tokens)).unflatten(-1, (-1, width)).transpose(1, 2)


def _normalised(x: Tensor) -> Tensor:
    return x * torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-6).reciprocal()


def _keys(x: Tensor, tokens: int) -> Tensor:
    keys = _normalised(_by_segment(x, tokens))
    keys = keys * torch.ones(keys.shape[2], 1)
    fading = (keys.detach().square() * 0.1).cumsum(dim=-2).sub(1.0).exp()
    return (keys * fading * fading).transpose(2, 3).contiguous()


def _gates(x: Tensor, tokens: int) -> Tensor:
    """Compute two gates, content and a norm by heads, and return to the flat layout."""
    flat = x.flatten(0, -2) if x.dim() > 2 else x
    heads = _by_segment(flat, tokens)
    written = torch.sigmoid(heads) * torch.tanh(heads + 1.0)
    read = (_normalised(written) * torch.ones(heads.shape[2], 1)).transpose(1, 2).flatten(2)
    gate = torch.sigmoid(flat.float() + 1.0)
    return gate * read.flatten(0, 1)
