"""What a memory costs in communication under tensor parallelism, counted."""

import os
from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist

from model.network import LanguageModel
from tests.distributed.spawn import run_ranks
from tests.distributed.training_case import tiny_config
from training.config import RunConfig
from training.distributed.topology import RankInfo, initialize

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter", "broadcast", "all_to_all")


def count(config: RunConfig) -> dict[str, int]:
    """Collective calls of one forward and of its backward over 4 segments."""
    topology = initialize(config, RankInfo.discover())
    net = LanguageModel(config.model, topology.parallel)
    net.initialize(0)
    calls: Counter[str] = Counter()

    def counted(name: str) -> Any:
        original = getattr(dist, name)

        def call(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            return original(*arguments, **named)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, counted(name))  # this process ends with the test
    hidden, _ = net.hidden(torch.randint(0, 64, (2, 32), generator=torch.Generator().manual_seed(0)))
    forward = sum(calls.values())
    hidden.square().sum().backward()
    return {"forward": forward, "backward": sum(calls.values()) - forward}


def counts_with(**memory: Any) -> dict[str, int]:
    return run_ranks(count, 2, tiny_config(model__memory=memory, phases=PHASES, parallel={"tensor": 2}))[0]


PHASES = [{"name": "only", "memory": False, "tokens": 4096, "tokens_per_step": 256, "lr": {"peak": 1e-3}}]
LAYERS = 4


@pytest.mark.parametrize("memory", [{"kind": "lm2", "flow": "time", "heads": 2}, {"kind": "delta", "heads": 2}])
def test_memories_through_time_add_no_collective(memory: dict[str, Any]) -> None:
    assert counts_with(**memory) == counts_with(kind="none") == {"forward": 2 * LAYERS + 1, "backward": 2 * LAYERS}


def test_the_published_lm2_adds_one_gather_a_layer_and_segment() -> None:
    found, plain = counts_with(kind="lm2", flow="depth", heads=2), counts_with(kind="none")
    segments = 4  # each passes all layers by itself
    assert found["forward"] - 1 == segments * (plain["forward"] - 1 + LAYERS)


def visible() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_ranks_of_the_tests_are_no_gpus() -> None:
    """They are gloo's, and more of them than a machine may have GPUs."""
    assert run_ranks(visible, 1) == [""]
