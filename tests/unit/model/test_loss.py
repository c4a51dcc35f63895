"""The loss in blocks against the one over all logits: values, gradients, and how much stands in memory at once."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.loss import HeadLoss
from model.parallel import TensorParallel

B, L, D, V = 3, 7, 5, 40


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.numbers = max(self.numbers, x.numel())
        return out


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((B, L, D), (V, D)))
    labels = torch.randint(V, (B, L), generator=generator)
    return (
        hidden.requires_grad_(),
        weight.requires_grad_(),
        labels,
        torch.rand(B, L, generator=generator).round(decimals=1),
    )


def at_once(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    logits = F.linear(hidden, weight).float()
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return (losses * weights).sum()


@pytest.mark.parametrize("rows", [1, 4, 21, 100])
def test_blocks_are_the_whole(rows: int) -> None:
    hidden, weight, labels, weights = inputs()
    found, expected = HeadLoss(TensorParallel(), block=rows * V)(hidden, weight, labels, weights), at_once(*inputs())
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    again = inputs()
    wanted = torch.autograd.grad(at_once(*again) * 3.0, again[:2])
    for gradient, other in zip(torch.autograd.grad(found * 3.0, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-6)


def test_a_tied_weight_gets_both_gradients() -> None:
    _, weight, labels, weights = inputs()
    results = []
    for loss in (HeadLoss(TensorParallel(), block=5 * V), at_once):
        out = loss(F.embedding(labels, weight), weight, labels.roll(1), weights)
        results.append(torch.autograd.grad(out, weight)[0])
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-6)


def test_bf16_keeps_its_types_and_sums_blocks_in_fp32() -> None:
    hidden, weight, labels, weights = inputs(torch.bfloat16)
    found = torch.autograd.grad(HeadLoss(TensorParallel(), block=V)(hidden, weight, labels, weights), (hidden, weight))
    exact = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    wanted = torch.autograd.grad(at_once(exact[0], exact[1], labels, weights), exact)
    for gradient, other in zip(found, wanted, strict=True):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient.float(), other, atol=0.02, rtol=0.02)


def test_only_what_is_asked_for_is_computed() -> None:
    hidden, weight, labels, weights = inputs()
    loss = HeadLoss(TensorParallel(), block=4 * V)
    with torch.no_grad():
        assert not loss(hidden, weight, labels, weights).requires_grad
    frozen = loss(hidden, weight.detach(), labels, weights)
    wanted = torch.autograd.grad(at_once(*(again := inputs())), again[0])
    torch.testing.assert_close(torch.autograd.grad(frozen, hidden), wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_logits_of_all_tokens_never_stand_in_memory(training: bool) -> None:
    hidden, weight, labels, weights = inputs()
    with Largest() as largest, torch.set_grad_enabled(training):
        out = HeadLoss(TensorParallel(), block=2 * V)(hidden, weight, labels, weights)
        if training:
            out.backward()
    assert largest.numbers == weight.numel() < B * L * V


def test_the_compiled_loss_is_the_eager_one() -> None:
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        given = inputs()
        out = HeadLoss(TensorParallel(), compiled, block=7 * V)(*given)
        results.append((out, *torch.autograd.grad(out, given[:2])))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
