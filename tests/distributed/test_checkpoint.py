"""Checkpoints: bit-equal at the same topology, equal at any other, partial at the switch."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.spawn import run_ranks
from tests.distributed.training_case import memory_alone, prune, save_while_training, switch, tiny_config
from training.checkpoint.folder import latest_checkpoint
from training.checkpoint.loading import load_tensors
from training.checkpoint.safe_reader import read_metadata
from training.errors import TrainingError

STEPS = 4


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict]]:
    """A warmup checkpoint written by tensor 2 x pipeline 2, and what its ranks held."""
    folder = tmp_path_factory.mktemp("checkpoints")
    config = tiny_config(model__tie_embeddings=True, parallel={"tensor": 2, "pipeline": 2})
    yield folder, run_ranks(switch, 4, config, config, str(folder), STEPS)[0]


@pytest.mark.parametrize("tensor, pipeline, data", [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1)])
def test_memory_phase_starts_from_any_topologys_warmup(
    saved: tuple[Path, dict], tensor: int, pipeline: int, data: int
) -> None:
    folder, before = saved
    config = tiny_config(model__tie_embeddings=True, parallel={"tensor": tensor, "pipeline": pipeline})
    after = run_ranks(switch, tensor * pipeline * data, config, config, str(folder), 0)[0]
    backbone = {n: v for n, v in after["weights"].items() if ".memory." not in n}
    assert backbone.keys() == before["weights"].keys()
    for name, value in before["weights"].items():
        assert torch.equal(backbone[name], value), f"{name} changed on its way"
    # nothing jumps at the switch, and the memory's own optimizer state begins where it does
    assert after["valid"] == pytest.approx(before["valid"], rel=1e-6)
    assert after["optimizer_steps"] == {"backbone": STEPS, "memory": 0}
    memory_moments = [v for n, v in after["weights"].items() if ".memory." in n and "/" in n]
    assert memory_moments and not any(v.any() for v in memory_moments)
    assert after["next"][0] == pytest.approx(before["next"][0], rel=1e-6)  # memory closed: the same loss


def test_a_pointer_to_nothing_whole_is_refused_when_nothing_else_is_there(
    saved: tuple[Path, dict], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved[0], folder)
    checkpoint = folder / f"step-{STEPS:08d}"
    (folder / "latest").write_text("../elsewhere\n")
    assert latest_checkpoint(folder) == checkpoint  # the only one, and whole
    (checkpoint / ".metadata").unlink()
    with pytest.raises(TrainingError, match=r"elsewhere.*metadata: is missing"):
        latest_checkpoint(folder)
    assert latest_checkpoint(tmp_path) is None


def test_pruning_keeps_what_the_pointer_names(tmp_path: Path) -> None:
    (left,) = run_ranks(prune, 1, str(tmp_path), 1, None)
    assert left == ["step-00000050"]  # step 80 was written by a life that died before it moved the pointer


def test_pruning_keeps_multiples_for_ever(tmp_path: Path) -> None:
    (left,) = run_ranks(prune, 1, str(tmp_path), 1, 20)
    assert left == ["step-00000020", "step-00000040", "step-00000050"]


@pytest.mark.parametrize("ranks, changes", [
    (1, {}),
    (2, {}),
    (2, {"training__zero_stage": 3}),
    (2, {"parallel": {"tensor": 2}}),
])  # fmt: skip
def test_a_memory_only_phase_hands_on_what_it_does_not_train(tmp_path: Path, ranks: int, changes: dict) -> None:
    """warmup -> memory alone (bf16) -> the backbone's fp32 weights, moments and steps are what they were, and no two
    data-parallel ranks hold the same of them."""
    config = tiny_config(training__precision="bf16", **changes)
    found = run_ranks(memory_alone, ranks, config, str(tmp_path))
    for rank in found:
        assert any("/exp_avg" in name for name in rank["before"])
        for name, value in rank["before"].items():
            assert torch.equal(rank["after"][name], value), f"{name} changed"
        assert rank["steps"] == {"backbone": 3, "memory": 2}
    shares = [rank["held"] for rank in found]
    whole = sum(value.numel() for value in found[0]["before"].values())
    assert sum(shares) == whole * (ranks if "parallel" in changes else 1)
    assert max(shares) < 0.7 * whole or ranks == 1 or "parallel" in changes
    before, after = (stored(tmp_path / f"step-0000000{step}") for step in (3, 5))
    for name, value in before.items():
        assert torch.equal(after[name], value) or name == "rng", f"{name} was stored otherwise"


def stored(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Everything a checkpoint holds, whole."""
    metadata: Any = read_metadata(checkpoint).state_dict_metadata
    values = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in metadata.items()}
    load_tensors(values, checkpoint)
    return values


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_each_replica_writes_its_share_alone(tmp_path: Path, zero: int) -> None:
    """data 2 -> one rank: nothing changed on the way, and neither rank wrote much more than half."""
    config = tiny_config(model__tie_embeddings=True, training__zero_stage=zero)
    before = run_ranks(switch, 2, config, config, str(tmp_path), STEPS)[0]
    sizes = [path.stat().st_size for path in sorted((tmp_path / f"step-{STEPS:08d}").glob("__*"))]
    assert len(sizes) == 2
    assert max(sizes) < 0.6 * sum(sizes)
    alone = tiny_config(model__tie_embeddings=True)
    after = run_ranks(switch, 1, alone, alone, str(tmp_path), 0)[0]["weights"]
    for name, value in before["weights"].items():
        assert torch.equal(after[name], value), f"{name} changed on its way"


@pytest.mark.parametrize("ranks, changes", [
    (1, {}),
    (2, {"training__zero_stage": 2}),
    (2, {"training__zero_stage": 3}),
    (2, {"training__zero_stage": 3, "training__offload": "all"}),
    (2, {"training__offload": "optimizer", "training__precision": "bf16"}),
    (2, {"parallel": {"pipeline": 2}}),
])  # fmt: skip
def test_training_goes_on_at_once_and_the_checkpoint_is_of_the_step_it_names(
    tmp_path: Path, ranks: int, changes: dict
) -> None:
    """The copies begin as late as they can: when the next update waits for them."""
    found = run_ranks(save_while_training, ranks, tiny_config(**changes), str(tmp_path), False)[0]
    assert found["waited"]
    for name, value in found["before"].items():
        assert torch.equal(found["saved"][name], value), f"{name} is not what it was when the checkpoint was started"
    assert any(not torch.equal(found["after"][name], value) for name, value in found["before"].items())


def test_copies_that_cannot_be_made_do_not_stop_training_and_are_said_on_every_rank(tmp_path: Path) -> None:
    for found in run_ranks(save_while_training, 2, tiny_config(), str(tmp_path), True):
        assert "rank 0: no room for copies" in found["error"]
        assert any(not torch.equal(found["after"][name], value) for name, value in found["before"].items())
    assert not list(tmp_path.iterdir())
