"""The operations with written-out derivatives against autograd's and against finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from model.memory.operations import address, decayed_keys, normalise, scan

examples = settings(max_examples=25, deadline=None, derandomize=True, database=None)
small = st.integers(1, 4)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.requires_grad_()


@examples
@given(
    batch=small, segments=st.integers(1, 6), slots=small, width=small, matrices=st.booleans(), seed=st.integers(0, 99)
)
def test_scan_is_its_recurrence_in_values_and_gradients(
    batch: int, segments: int, slots: int, width: int, matrices: bool, seed: int
) -> None:
    bank = drawn(batch, 2, slots, width, seed=seed)
    transition = drawn(batch, segments, 2, slots, slots if matrices else 1, seed=seed + 1)
    added = drawn(batch, segments, 2, slots, width, seed=seed + 2)
    entering, last = scan(bank, transition, added)
    expected = bank
    for s in range(segments):
        torch.testing.assert_close(entering[:, s], expected, atol=1e-12, rtol=1e-12)
        step = transition[:, s]
        expected = (step @ expected if matrices else step * expected) + added[:, s]
    torch.testing.assert_close(last, expected, atol=1e-12, rtol=1e-12)
    assert gradcheck(scan, (bank, transition, added))


@examples
@given(tokens=st.integers(1, 6), slots=small, seed=st.integers(0, 99))
def test_decayed_keys_are_the_products_of_later_forgetting(tokens: int, slots: int, seed: int) -> None:
    keys, strength = drawn(2, tokens, slots, seed=seed), drawn(2, tokens, 1, seed=seed + 1)
    decayed, kept = decayed_keys(keys, strength)
    factor = (-strength * keys.square()).exp()
    for t in range(tokens):
        torch.testing.assert_close(decayed[:, t], keys[:, t] * factor[:, t + 1 :].prod(dim=1))
    torch.testing.assert_close(kept, factor.prod(dim=1, keepdim=True))
    assert gradcheck(decayed_keys, (keys, strength))


@pytest.mark.parametrize("length", [1.0, 3.0])
def test_normalise_divides_by_the_length(length: float) -> None:
    x = drawn(3, 2, 5)
    torch.testing.assert_close(normalise(x, 0.3, length), x / (x.square().sum(-1, keepdim=True) + 0.3).sqrt() * length)
    assert gradcheck(lambda x: normalise(x, 0.3, length), (x,))


def test_normalise_of_nothing_is_nothing() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    y = normalise(x, 1e-12)
    y.sum().backward()
    assert x.grad is not None
    assert y.eq(0).all() and x.grad.isfinite().all()


def test_addresses_are_positive_unit_vectors() -> None:
    x = drawn(3, 2, 5)
    phi = torch.nn.functional.elu(1.7 * x) + 1
    torch.testing.assert_close(address(x, 1.7), phi / phi.square().sum(-1, keepdim=True).sqrt())
    assert gradcheck(lambda x: address(x, 1.7), (x,))


def test_an_address_far_below_zero_has_finite_gradients() -> None:
    x = torch.full((2, 3), -200.0, requires_grad=True)
    address(x, 1.0).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
