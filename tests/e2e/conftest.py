"""Runs that several files of tests look at; each is trained once."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from tests.e2e.commands import (
    PRETRAIN,
    Done,
    deepspeed,
    run,
    run_warm,
)
from tests.e2e.place import EVERY, LENGTH, PHASE_STEPS, SEGMENT, STEPS, TOKENS_PER_STEP, Place


@pytest.fixture(scope="session")
def place(prepared_data: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("pretrain")

    def phase(name: str, memory: bool, **lr: Any) -> dict[str, Any]:
        tokens = PHASE_STEPS * TOKENS_PER_STEP - 1  # rounded up to whole steps
        return {"name": name, "memory": memory, "tokens": tokens, "tokens_per_step": TOKENS_PER_STEP, "lr": lr}

    config = {
        "run": {"name": "tiny", "output_dir": "runs"},
        "data": {"path": str(prepared_data), "sequence_length": LENGTH},
        "model": {
            "vocab_size": 512,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 2,
            "ffn_size": 64,
            "segment_length": SEGMENT,
            "tie_embeddings": True,
            "memory": {"kind": "lm2", "flow": "time", "slots": 4, "heads": 2},
        },
        "phases": [
            phase("warmup", False, peak=4e-3, warmup_tokens=2 * TOKENS_PER_STEP),
            phase("memory", True, peak=4e-3, warmup_tokens=2 * TOKENS_PER_STEP, decay_tokens=3 * TOKENS_PER_STEP),
        ],
        "training": {"micro_batch_size": 1, "eval_every_steps": 4, "eval_samples": 5},
        "checkpoint": {"every_steps": EVERY, "keep_last": 2},
        "tracking": {"enabled": False},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "runs").mkdir()
    shutil.copy(empty_store, folder / "runs" / "mlflow.db")
    return Place(folder)


def trained(place: Place, shared: Path, name: str, train: Callable[[], Done]) -> Path:
    """The folder of run `name` in `place`: trained by the first worker that asks, copied for the others."""
    kept, own = shared / f"run-{name}", place.runs(name)
    with FileLock(f"{kept}.lock"):
        if kept.exists():
            return shutil.copytree(kept, own)
        done = train()
        assert done.code == 0, done.err
        assert f"finished: {STEPS} steps" in done.out
        shutil.copytree(own, kept)
    return own


@pytest.fixture(scope="session")
def finished(place: Place, shared_folder: Path) -> Path:
    """The folder of a run that one process trained without interruption."""
    arguments = place.arguments("finished")
    return trained(place, shared_folder, "finished", lambda: run_warm(PRETRAIN, *arguments, cwd=place.folder))


@pytest.fixture(scope="session")
def two_ranks(place: Place, shared_folder: Path) -> Path:
    """The folder of a run that two data-parallel ranks trained without interruption."""

    def train() -> Done:
        done = run(deepspeed(2, *place.arguments("two")), place.folder)
        of_the_launcher = [line for line in (done.out + done.err).splitlines() if re.match(r"\[\d{4}-", line)]
        assert all("real_accelerator" in line for line in of_the_launcher), "deepspeed -q is quiet"
        assert len(of_the_launcher) <= 2, "the ranks are, too"
        return done

    return trained(place, shared_folder, "two", train)
