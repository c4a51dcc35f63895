"""What people mistype: the launchers name it, end with code 2 and write nothing."""

import runpy
import sys
from pathlib import Path

import pytest

from data_prep.bank import BankWriter
from data_prep.errors import DataError
from evaluation.report import page
from evaluation.report.page import write_report
from training.errors import ConfigError, output_folder

LAUNCHERS = Path(__file__).parents[3] / "launchers"


def command(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    main = runpy.run_path(str(LAUNCHERS / name), run_name="launcher")["main"]
    try:
        return int(main(arguments) if name in ("plan.py", "inspect_data.py", "evaluate.py") else main())
    except SystemExit as end:  # argparse's
        return int(end.code or 0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file where a folder is wanted."""
    path = tmp_path / "file"
    path.write_text("")
    return path


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("check_nodes.py", ["FILE"], "RESULTS: FILE cannot be made"),
        ("plan.py", ["--config", "configs/quickstart.yaml", "--scale", "8", "--out", "FILE/x"], "--out: FILE/x cannot"),
        (
            "plan.py",
            ["--config", "configs/quickstart.yaml", "phases=[{"],
            "override: 'phases=[{': the value after = is not",
        ),
        (
            "plan.py",
            ["--config", "configs/quickstart.yaml", "--devices", "cpu:2", "--scale", "8"],
            "cpu is this machine",
        ),
        ("checkpoint.py", ["verify", "FILE/nothere"], "PATH: FILE/nothere does not exist"),
        ("generate.py", ["--checkpoint", "runs/x", "--max-tokens", "-3"], "--max-tokens: -3 must not be negative"),
        ("generate.py", ["--checkpoint", "runs/x", "run.name=y"], "run.name=y: overrides go with --config"),
        ("evaluate.py", ["--checkpoint", "runs/x", "--top-k", "3"], "--top-k belongs to retrieval; add --retrieval"),
        ("checkpoint.py", ["average", "FILE/new", "runs/x"], "give two checkpoints or more"),
        ("ablation.py", ["--config", "configs/ablation/figure5_small.yaml", "--cluster", "FILE/no"], "--cluster"),
        (
            "pretrain.py",
            ["--config", "configs/quickstart.yaml", "--training.precision=bf16"],
            "overrides have no dashes: training.precision=bf16",
        ),
        ("export.py", ["runs/x", "OUT", "--shard-size", "5XB"], "--shard-size: '5XB' is not a size"),
        ("generate.py", ["--checkpoint", "runs/x", "--seed", "9" * 23], "must be from 0 to 18446744073709551615"),
        ("generate.py", ["--checkpoint", "runs/x", "--top-k", "9" * 23], "must be at most 9223372036854775807"),
        ("evaluate.py", ["--checkpoint", "runs/x", "--seed=-1"], "must be from 0 to"),
        ("evaluate.py", ["--checkpoint", "FILE", "--lengths", "9" * 23], "more than 999 million tokens"),
        ("inspect_data.py", ["--config", "FILE", "--sample", "9" * 23], "must be at most 9223372036854775807"),
        ("plan.py", ["--config", "configs/quickstart.yaml", "--devices", "h200:" + "9" * 23], "more than 1,000,000"),
        ("export.py", ["runs/x", "n" * 300], "a name in it has 300 bytes"),
        ("report.py", ["runs/" + "n" * 300], "a name in it has 300 bytes"),
        ("status.py", ["~nobody-here/run"], "the home of an unknown user"),
        ("import_hf.py", ["FILE/x"], "FOLDER: FILE/x does not exist"),
        ("import_hf.py", ["FILE"], "FOLDER: FILE is a file"),
        ("checkpoint.py", ["copy", "FILE/x", "FILE/y"], "PATH: FILE/x does not exist"),
    ],
)
def test_a_mistake_is_named(
    name: str,
    arguments: list[str],
    said: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(LAUNCHERS.parent)
    assert command(monkeypatch, name, *[part.replace("FILE", str(file)) for part in arguments]) == 2
    assert said.replace("FILE", str(file)) in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"--output: .* cannot be made .*; give another folder"):
        output_folder(file, "--output")


def test_a_report_names_its_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "load_runs", lambda _: [])
    with pytest.raises(ConfigError, match=r"--output: .* cannot be made"):
        write_report([], file, "corrected", "")


def test_a_bank_names_its_folder(file: Path) -> None:
    with pytest.raises(DataError, match="cannot be made"):
        BankWriter(file, (1, 2, 1, 2, 4), "float32", "model", "references")


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("status.py", ["~/run"], "HOME/run: is not a run's folder"),
        ("generate.py", ["--checkpoint=~/run", "--prompt", "x"], "--checkpoint: HOME/run does not exist"),
        ("export.py", ["~/run", "out"], "HOME/run does not exist"),
        ("checkpoint.py", ["list", "~/run"], "HOME/run: has no checkpoints"),
        ("checkpoint.py", ["verify", "~/run"], "PATH: HOME/run does not exist"),
        ("plan.py", ["--config=~/run.yaml"], "--config: HOME/run.yaml does not exist"),
        ("import_hf.py", ["~/llama"], "FOLDER: HOME/llama does not exist"),
        ("mlflow_sync.py", ["~/run"], "HOME/run: is not a run's folder"),
        ("report.py", ["~/run"], "HOME/run is no run's folder"),
    ],
)
def test_home_in_every_option(
    name: str,
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command(monkeypatch, name, *arguments) == 2
    assert said.replace("HOME", str(tmp_path)) in capsys.readouterr().err
