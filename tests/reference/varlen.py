"""torch's operator for sequences of different lengths on a CPU, where it has no kernel, by plain formulas.

So the branch of a GPU runs in tests that import the two fixtures.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import _varlen_attn, _varlen_attn_backward

CALLS: list[int] = []  # sequences of each call of the kernel


def weights_of(q: Tensor, k: Tensor) -> Tensor:
    """One sequence, q [n, H, d] aligned with the last of the keys k [m, H, d] -> [H, n, m]."""
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.size(-1) ** -0.5
    seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
    return scores.masked_fill(~seen, float("-inf")).softmax(-1)


def each(cu_q: Tensor, cu_k: Tensor) -> Iterator[tuple[slice, slice]]:
    for ends in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), cu_k[:-1].tolist(), cu_k[1:].tolist(), strict=True):
        yield slice(*ends[:2]), slice(*ends[2:])


def forward(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    CALLS.append(len(cu_q) - 1)
    longest_q, longest_k, causal = rest[:3]
    assert causal and cu_q.dtype == cu_k.dtype == torch.int32 and len(cu_q) == len(cu_k)
    assert int(cu_q.diff().max()) <= longest_q and int(cu_k.diff().max()) <= longest_k
    assert int(cu_q[-1]) == len(q) and int(cu_k[-1]) == len(k)
    out, (keys, values) = torch.empty_like(q), (x.repeat_interleave(q.size(1) // x.size(1), 1) for x in (k, v))
    for own, seen in each(cu_q, cu_k):
        out[own] = torch.einsum("hqk,khd->qhd", weights_of(q[own], keys[seen]), values[seen])
    return out, q.new_empty(q.size(1), len(q)), torch.zeros(2, dtype=torch.uint64)


def backward(d: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """No autograd works below an operator: the derivatives of softmax by hand."""
    heads, group = k.size(1), q.size(1) // k.size(1)
    keys, values = (x.repeat_interleave(group, 1) for x in (k, v))
    d_q, d_k, d_v = (torch.zeros_like(x) for x in (q, keys, values))
    for own, seen in each(*rest[:2]):
        weights = weights_of(q[own], keys[seen])
        d_weights = torch.einsum("qhd,khd->hqk", d[own], values[seen])
        d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True)) * q.size(-1) ** -0.5
        d_q[own] = torch.einsum("hqk,khd->qhd", d_scores, keys[seen])
        d_k[seen] = torch.einsum("hqk,qhd->khd", d_scores, q[own])
        d_v[seen] = torch.einsum("hqk,qhd->khd", weights, d[own])
    return d_q, *(x.unflatten(1, (heads, group)).sum(2) for x in (d_k, d_v))


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    _varlen_attn.register_kernel("cpu")(forward)
    _varlen_attn_backward.register_kernel("cpu")(backward)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As if the CPU were a GPU with the kernel; the list gets the number of sequences of each call of it."""
    monkeypatch.setattr("model.preparation.serves_varlen", lambda *_: True)
    CALLS.clear()
    return CALLS
