"""Runs whose values are typed as people type them: nothing held out, `~`, a name with `#`, a console that ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from data_prep import PrepareConfig, SourceConfig, TokenizerConfig, prepare
from tests.e2e.commands import PRETRAIN, environment
from tests.pictures import coloured
from tests.unit.training.config_case import TINY
from training.monitoring import plots


@pytest.fixture(scope="module")
def place(prepared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with data of which nothing is held out, and a configuration beside it."""
    folder = tmp_path_factory.mktemp("typed")
    settings = PrepareConfig(
        sources=[SourceConfig(kind="python-stdlib")],
        tokenizer=TokenizerConfig(path=prepared_data / "tokenizer.model"),
        max_bytes=300_000,
        valid_fraction=0,
        workers=1,
    )
    prepare(settings, folder / "data", Console(quiet=True))
    run = TINY | {
        "data": {"path": "~/data", "sequence_length": 64},
        "training": {"micro_batch_size": 1, "eval_every_steps": 2},
        "checkpoint": {"every_steps": 2},
        "tracking": {"enabled": False},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    return folder


def train(place: Path, console: str, *overrides: str) -> "subprocess.CompletedProcess[str]":
    """The command through a shell that does `console` with its output; the exit code is the command's own."""
    quoted = " ".join(f"'{text}'" for text in overrides)
    command = f"set -o pipefail; '{sys.executable}' '{PRETRAIN}' --config ~/tiny.yaml {quoted} {console}"
    env = environment({"HOME": str(place), "PYTHONIOENCODING": "ascii"})
    return subprocess.run(
        ["bash", "-c", command], env=env, cwd=place, capture_output=True, text=True, timeout=240, check=False
    )


def metrics(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_without_held_out_documents_a_run_trains_and_does_not_evaluate(place: Path) -> None:
    done = train(place, "", "run.name=exp #5", "run.output_dir=~/runs", "phases.0.name=wärmen")
    assert done.returncode == 0, done.stderr
    assert "no evaluation: no document is held out (data.prepare.valid_fraction: 0)" in done.stdout
    assert "w\\xe4rmen" in done.stdout
    folder = place / "runs" / "exp #5"
    lines = metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert not any("valid_loss" in line for line in lines)
    assert coloured(folder / "loss.png", plots.TRAIN) > 500
    assert coloured(folder / "loss.png", plots.VALID) == 0  # nothing was evaluated


@pytest.mark.parametrize("console", ["| head -n 1", ">&- 2>&-"])
def test_a_run_goes_to_its_end_without_a_console(place: Path, console: str) -> None:
    name = "piped" if "head" in console else "closed"
    done = train(place, console, f"run.name={name}", "run.output_dir=~/runs")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert len(metrics(place / "runs" / name)) == 8
