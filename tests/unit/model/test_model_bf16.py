"""bf16 weights: every kind runs forward, backward and on, with its banks and gates in fp32."""

import pytest
import torch
import torch.nn.functional as F

from model import build_model
from tests.reference.small import KINDS, awake, random_ids, tiny
from tests.reference.small import one_thread as one_thread

DOCUMENTS = torch.tensor([[0] * 6 + [1] * 8, [0] * 14])


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_close_to_fp32_and_trains(kind):
    exact = awake(build_model(tiny(KINDS[kind], init_std=0.1), seed=1), seed=2)
    ids = random_ids(3, 2, 14)
    expected = exact(ids, DOCUMENTS).logits
    net = awake(build_model(tiny(KINDS[kind], init_std=0.1), seed=1), seed=2).to(torch.bfloat16)
    out = net(ids, DOCUMENTS)
    assert out.logits.dtype == torch.float32
    assert (out.logits - expected).abs().max() < 0.05 * expected.abs().max() + 0.02
    out.logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    parts = torch.cat([net(ids[:, :5], DOCUMENTS[:, :5]).logits, out.logits[:, 5:]], dim=1)
    assert (parts - out.logits)[:, :5].abs().max() < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_steps_in_bf16_stay_finite_and_learn(kind):
    net = build_model(tiny(KINDS[kind], init_std=0.1, num_layers=1), seed=1).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for step in range(200):
        ids = random_ids(step % 4, 2, 15)
        logits = net(ids[:, :-1], DOCUMENTS).logits
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        assert loss.isfinite() and norm.isfinite(), f"step {step}"
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])


@pytest.mark.parametrize("kind", ["lm2", "delta"])
def test_banks_stay_fp32(kind):
    net = awake(build_model(tiny(KINDS[kind]), seed=1), seed=2).to(torch.bfloat16)
    state = net(random_ids(3, 2, 14)).state
    assert all(layer.memory.bank.dtype == torch.float32 for layer in state.layers)


def test_the_published_bank_stays_fp32():
    net = awake(build_model(tiny(KINDS["lm2-depth"]), seed=1), seed=2).to(torch.bfloat16)
    assert net(random_ids(3, 2, 14)).state.carried.slots.dtype == torch.float32
