"""A resume reads this rank's share of the checkpoint and no more, and draws no weight that it then reads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.distributed.spawn import run_ranks
from tests.distributed.training_case import start, step_batch, tiny_config, whole_weights
from training.checkpoint.folder import CheckpointFolder, RunState, restore
from training.checkpoint.loading import stored_names
from training.checkpoint.reading import runs
from training.config import RunConfig
from training.distributed.ranks import RankInfo
from training.distributed.topology import initialize
from training.engine import build_engine

STEPS = 2
SIZES = {"model__vocab_size": 256, "model__hidden_size": 128, "model__ffn_size": 256}


def sized(**changes: Any) -> RunConfig:
    """Large enough that tensors, not the list of them, are what is read."""
    return tiny_config(**SIZES, **changes)


def save(config: RunConfig, folder: str) -> dict[str, torch.Tensor]:
    engine, topology = start(config, 1)
    for step in range(STEPS):
        engine.train_step(step_batch(step, topology, config.training.micro_batch_size), 3e-3)
    state = RunState(STEPS, 0, 0, "memory", STEPS, engine.optimizer_steps(), "", "", {}, {})
    CheckpointFolder(Path(folder), topology).save(engine, state)
    return whole_weights(engine, topology)


def resume(config: RunConfig, folder: str) -> dict[str, Any]:
    """What a resume reads, what this rank keeps of the checkpoint, and the weights before and after."""
    topology = initialize(config, RankInfo.discover())
    checkpoint = CheckpointFolder(Path(folder), topology).latest()
    assert checkpoint is not None
    stored = stored_names(checkpoint)
    engine = build_engine(config, config.phases[1], topology, stored)
    drawn = [
        name for name, value in whole_weights(engine, topology).items() if "/" not in name and value.isfinite().any()
    ]
    restore(engine, checkpoint, topology, moments=True, rng=True)  # imports what it needs
    before = psutil.Process().io_counters().read_chars
    restore(engine, checkpoint, topology, moments=True, rng=True)
    read = psutil.Process().io_counters().read_chars - before
    share = sum(4 * values.numel() for _, _, values in engine.memory_to_load(stored, moments=True))
    return {"drawn": drawn, "read": read, "share": share, "weights": whole_weights(engine, topology)}


@pytest.fixture(scope="module", params=["one rank", "tensor 2"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict]]:
    folder = str(tmp_path_factory.mktemp("saved"))
    config, ranks = (sized(), 1) if request.param == "one rank" else (sized(parallel={"tensor": 2}), 2)
    yield folder, run_ranks(save, ranks, config, folder)[0]


@pytest.mark.parametrize("ranks, changes", [
    (1, {}),
    (2, {}),
    (2, {"training__zero_stage": 3}),
    (2, {"parallel": {"tensor": 2}}),
    (2, {"parallel": {"pipeline": 2}}),
])  # fmt: skip
def test_each_rank_reads_its_share_alone(saved: tuple[str, dict], ranks: int, changes: dict[str, Any]) -> None:
    folder, before = saved
    found = run_ranks(resume, ranks, sized(**changes), folder)
    whole = sum(4 * value.numel() for value in before.values())
    for rank in found:
        assert rank["drawn"] == []
        assert rank["share"] <= rank["read"] < 1.1 * rank["share"]
        assert rank["share"] < 1.3 * whole / ranks  # norms are on every tensor-parallel rank; a stage has the head
        for name, value in before.items():
            assert torch.equal(rank["weights"][name], value), f"{name} changed on its way"


def test_bf16_weights_are_those_of_the_fp32_ones(saved: tuple[str, dict]) -> None:
    folder, before = saved
    for rank in run_ranks(resume, 2, sized(training__precision="bf16"), folder):
        for name, value in before.items():
            assert torch.equal(rank["weights"][name], value), f"{name} changed on its way"


def test_a_part_of_a_tensor_is_read_in_runs_of_consecutive_numbers() -> None:
    whole = torch.arange(4 * 6 * 5).view(4, 6, 5)
    for offsets, lengths, count in (((0, 0, 0), (4, 6, 5), 1), ((1, 0, 0), (2, 6, 5), 1), ((1, 2, 0), (2, 3, 5), 2),
                                    ((0, 1, 2), (3, 2, 2), 6)):  # fmt: skip
        part = whole[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))]
        found = list(runs(whole.shape, offsets, lengths))
        assert len(found) == count
        assert torch.equal(torch.cat([whole.flatten()[begin : begin + size] for begin, size in found]), part.flatten())
