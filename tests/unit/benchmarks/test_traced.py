"""What benchmarks/counting.py counts, against what can be counted by hand."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.counting import Compiled, Counts, Eager
from benchmarks.gpu_parts.training import LLAMA
from benchmarks.traced import Micro, after, before, loss_at_once
from model.loss import HeadLoss
from model.parallel import TensorParallel

N = 1000
ARRAY = 4 * N  # bytes


def test_views_cost_nothing_and_operations_what_they_read_and_write() -> None:
    x = torch.ones(N)
    with Eager() as traced:
        y = x + x  # one array read
        y.view(10, -1).t().unsqueeze(0)
        y.mul_(x)
        y.zero_()
        torch.ones(3, 4) @ torch.ones(4, 5)
    arrays = [(2, "add"), (3, "mul_"), (1, "zero_")]
    ones = 4 * (3 * 4 + 4 * 5)
    assert traced.counts == Counts(1, 0, len(arrays) + 2, sum(n for n, _ in arrays) * ARRAY + ones)


def test_a_look_up_does_not_read_its_table() -> None:
    table, ids = torch.ones(N, 8), torch.zeros(5, dtype=torch.int64)
    with Eager() as traced:
        F.embedding(ids, table)
    assert traced.counts == Counts(0, 0, 1, 2 * 4 * 5 * 8 + 8 * 5)


def test_the_peak_is_what_lives_at_once() -> None:
    x = torch.ones(N)
    with Eager() as traced:
        for _ in range(3):
            y = x + 1.0
            z = y * 2.0
            del y, z
        assert traced.peak == 2 * ARRAY
        traced.holds(5 * ARRAY)
    assert traced.peak == 5 * ARRAY


def test_compiled_elementwise_work_is_one_kernel_each_way() -> None:
    torch._dynamo.reset()
    cost = Compiled()
    x = torch.ones(N, requires_grad=True)

    def work(x: Tensor) -> Tensor:
        return (x.sin() + 1.0).exp() * 2.0

    with cost.as_compiler():
        y = torch.compile(work, dynamic=False)(x)
    assert cost.counts == Counts(0, 0, 1, 2 * ARRAY)
    y.sum().backward()
    assert cost.counts == Counts(0, 0, 2, 2 * ARRAY + 3 * ARRAY)  # x and dy are read, dx is written
    assert x.grad is not None and cost.inside == 0


def test_a_block_of_the_loss_does_not_stand_beside_the_one_before() -> None:
    tokens, width, vocabulary, rows = 96, 4, 500, 12
    hidden, weight = torch.ones(1, tokens, width, requires_grad=True), torch.ones(vocabulary, width, requires_grad=True)
    labels, weights = torch.zeros(1, tokens, dtype=torch.int64), torch.ones(1, tokens)
    peaks = []
    for loss in (HeadLoss(TensorParallel(), block=rows * vocabulary), loss_at_once):
        with Eager() as traced:
            torch.autograd.grad(loss(hidden, weight, labels, weights), (hidden, weight))
        peaks.append(traced.peak)
    block, head = 4 * rows * vocabulary, 4 * vocabulary * width
    assert 2 * block < peaks[0] < 2 * block + 3 * head
    assert peaks[1] > 2 * 4 * tokens * vocabulary


def test_both_ways_through_a_small_model() -> None:
    torch._dynamo.reset()
    found = [trace(Micro(LLAMA, 2, small=True)) for trace in (before, after)]
    old, new = (one.total for one in found)
    layers = 2
    assert old.attention == new.attention == 2 * layers  # forward and backward
    assert old.products == 12 * layers + 3 == new.products
    assert new.elementwise < old.elementwise / 3 and new.bytes < old.bytes / 2
