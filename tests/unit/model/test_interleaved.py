"""`InterleavedColumnParallel`: a product for each map and one product for all give the same values and gradients."""

import pytest
import torch
from torch import Tensor

from model import parallel
from model.parallel import InterleavedColumnParallel
from model.parallel_context import ParallelContext


def parts_of(layer: InterleavedColumnParallel, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The parts, and the gradients of input and weight when each part is weighed differently."""
    x = x.detach().requires_grad_()
    layer.weight.grad = None
    parts = [part.flatten(-3) for part in layer(x)]
    sum((part * (1 + number)).square().sum() for number, part in enumerate(parts)).backward()  # type: ignore[union-attr]
    assert x.grad is not None and layer.weight.grad is not None
    return [part.detach() for part in parts], [x.grad, layer.weight.grad]


@pytest.mark.parametrize("parts, width, groups", [((1, 1), 1, 24), ((3, 1, 1), 8, 2), ((1, 1, 1), 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_separate_products_equal_one(
    parts: tuple[int, ...], width: int, groups: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = InterleavedColumnParallel(16, groups, parts, width, ParallelContext().tensor)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    layer = layer.to(dtype)
    x = torch.randn(2, 128, 16, generator=generator).to(dtype)  # [B, L, D]
    assert x.shape[:-1].numel() >= parallel._SEPARATE_ROWS
    found, gradients = parts_of(layer, x)
    monkeypatch.setattr(parallel, "_SEPARATE_ROWS", x.numel())
    expected, expected_gradients = parts_of(layer, x)
    atol, rtol = (1e-5, 1e-5) if dtype is torch.float32 else (0.05, 0.02)
    rows = layer.weight.detach().unflatten(0, (groups, sum(parts), width)).split(parts, dim=1)
    for part, other, weight in zip(found, expected, rows, strict=True):
        torch.testing.assert_close(part, other, atol=atol, rtol=rtol)
        torch.testing.assert_close(part, x @ weight.flatten(0, 2).T, atol=atol, rtol=rtol)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient / other.abs().max(), other / other.abs().max(), atol=atol, rtol=rtol)
