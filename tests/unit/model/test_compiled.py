"""Compiled decoder layers against eager ones: one graph, the same values and gradients, nothing compiled again."""

import logging
from collections.abc import Iterator
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from model import LanguageModel, build_model
from model.memory.interface import memories
from model.parallel_context import ParallelContext, Recompute
from tests.distributed.training_case import tiny_config
from tests.reference.small import DELTA, LM2, NONE, VOCAB, awake, random_ids, tiny
from tests.reference.small import one_thread as one_thread
from tests.reference.varlen import kernels as kernels
from tests.reference.varlen import on_a_gpu as on_a_gpu
from training.engine.compilation import compiles

COMPILED = {"none": NONE, "lm2": LM2, "delta": DELTA}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


# Graphs are made and differentiated; lowering them to C++, up to 30 CPU-seconds each, is torch's own work.
GRAPHS_ALONE = "aot_eager_decomp_partition"


def documents(seed: int, often: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(2, 16, generator=generator) < often).cumsum(dim=1)


def gradients(net: LanguageModel, ids: Tensor, documents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    net.zero_grad()
    logits = net(ids, documents).logits
    (logits * torch.linspace(-1, 1, VOCAB)).mean().backward()
    return logits.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("kind", "span", "backend"),
    [
        *((kind, span, GRAPHS_ALONE) for kind, span in product(COMPILED, (1, 2))),
        *(pytest.param(kind, 1, "inductor", marks=pytest.mark.slow) for kind in COMPILED),
        pytest.param("delta", 2, "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_layers_are_the_eager_ones(
    kind: str, span: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    eager, compiled = (awake(build_model(tiny(COMPILED[kind], attention_span=span), seed=1), seed=2) for _ in range(2))
    for layer in compiled.decoder_layers:
        layer.compile_block()
    for step in range(3):
        ids, numbers = random_ids(step, 2, 16), documents(step, 0.1 * step)
        for net in (eager, compiled):
            with torch.no_grad():
                net(ids, numbers)
        (one, expected), (other, found) = (gradients(net, ids, numbers) for net in (eager, compiled))
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5, msg=name)
        if step == 0:
            graphs = counters["stats"]["unique_graphs"]
    assert graphs == 2, "all layers share a graph for training and one for evaluation"
    assert counters["stats"]["unique_graphs"] == graphs and not counters["graph_break"]
    for one_memory, other_memory in zip(memories(eager), memories(compiled), strict=True):
        gates, expected_gates = other_memory.take_gates(), one_memory.take_gates()
        assert gates.keys() == expected_gates.keys()
        for name, gate in gates.items():
            torch.testing.assert_close(gate, expected_gates[name])


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_number_of_documents_compiles_nothing_again(
    recompute: Recompute, on_a_gpu: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=GRAPHS_ALONE))
    nets = [LanguageModel(tiny(LM2), ParallelContext(recompute=recompute)) for _ in range(2)]
    for net in nets:
        net.initialize(1)
        awake(net, seed=2)
    for layer in nets[1].decoder_layers:
        layer.compile_block()
    for step in range(3):
        ids, numbers = random_ids(step, 2, 16), documents(step, 0.3 * step)
        (one, expected), (other, found) = (gradients(net, ids, numbers) for net in nets)
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5, msg=name)
    assert len(set(on_a_gpu)) == 3, "three numbers of sequences"
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("changes", "phase", "reason"),
    [
        ({"model__memory": {"kind": "rmt", "slots": 2}}, 1, "memory rmt"),
        ({"model__memory": {"kind": "rmt", "slots": 2}}, 0, None),  # a phase without the memory
        ({"model__memory": {"kind": "lm2", "flow": "depth", "heads": 2}}, 1, "memory lm2"),
        ({"parallel__tensor": 2}, 1, "parallel.tensor 2"),
        ({"training__zero_stage": 3}, 1, "zero_stage 3"),
        ({"training__activation_checkpointing": "selective"}, 1, "selective"),
        ({"training__activation_checkpointing": "full"}, 1, None),
    ],
)
def test_what_stays_eager_is_said(changes: dict, phase: int, reason: str | None, caplog) -> None:
    config = tiny_config(training__compile="on", **changes)
    with caplog.at_level(logging.INFO, "memtrain"):
        found = compiles(config, config.phases[phase], at("cpu"))
    assert found == (reason is None) and (reason or "are compiled") in caplog.text


def at(device: str) -> Any:
    """As much of a topology as is asked for."""
    return SimpleNamespace(device=torch.device(device))


def test_auto_compiles_on_a_gpu_only() -> None:
    config = tiny_config()
    where = [compiles(config, config.phases[1], at(d)) for d in ("cpu", "cuda")]
    assert where == [False, True]
