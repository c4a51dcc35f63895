"""Preparation in tasks: shared between processes, killed and continued, always the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from data_prep import DataError, PrepareConfig, PreparedFolder, prepare
from data_prep.preparation.plan import load_plan
from data_prep.preparation.prepare import Preparation
from data_prep.preparation.task import load_result

ROOT = Path(__file__).parents[3]
QUIET = Console(quiet=True)
WORDS = ("memory", "reads", "before", "it", "is", "written", "and", "every", "token", "keeps", "what", "was", "seen")


def write_inputs(folder: Path, files: int = 8, documents: int = 60) -> Path:
    rng = random.Random(0)
    folder.mkdir(parents=True)
    for number in range(files):
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(20, 200))) for _ in range(documents)]
        texts.append("a document that is in every file")
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{number}.jsonl").write_text(lines)
    return folder


def config_of(inputs: Path, **changes: object) -> PrepareConfig:
    settings = {
        "sources": [{"kind": "jsonl", "path": str(inputs), "name": "web"}],
        "tokenizer": {"vocab_size": 300, "train_bytes": 50_000},
        "valid_fraction": 0.1,
        "shard_bytes": 8192,
        "task_bytes": 60_000,
        "workers": 1,
    }
    return PrepareConfig.model_validate(settings | changes)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("tasks") / "in")


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run of one process writes."""
    folder = tmp_path_factory.mktemp("tasks") / "whole"
    manifest = prepare(config_of(inputs), folder, QUIET)
    assert manifest.skipped["web"].duplicates == 7  # one document is in all eight files
    assert not folder.with_name("whole.work").exists()
    return content(folder)


@pytest.mark.parametrize("processes", [1, 3, 20])
def test_any_number_of_processes_writes_the_same(
    inputs: Path, whole: dict[str, bytes], tmp_path: Path, processes: int
) -> None:
    for number in reversed(range(processes)):
        mine = Preparation(config_of(inputs), tmp_path / "data", QUIET)
        plan = mine.plan()
        assert len(plan.tasks) > 3
        mine.run_tasks(plan, range(number, len(plan.tasks), processes))
    last = Preparation(config_of(inputs), tmp_path / "data", QUIET)
    last.merge(last.plan())
    assert content(tmp_path / "data") == whole


def test_unfinished_tasks_are_named(inputs: Path, tmp_path: Path) -> None:
    mine = Preparation(config_of(inputs), tmp_path / "data", QUIET)
    plan = mine.plan()
    mine.run_tasks(plan, [0, 2])
    with pytest.raises(DataError, match=rf"2 of {len(plan.tasks)} tasks|tasks are not finished \(1, 3"):
        mine.merge(plan)


def test_finished_tasks_are_not_repeated(
    inputs: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Preparation(config_of(inputs), tmp_path / "data", QUIET)
    plan = mine.plan()
    mine.run_tasks(plan, [0, 1])
    done = []
    import data_prep.preparation.task as task

    original = task.tokenize
    monkeypatch.setattr(task, "tokenize", lambda *given: done.append(1) or original(*given))
    prepare(config_of(inputs), tmp_path / "data", QUIET)
    assert len(done) == len(plan.tasks) - 2
    assert content(tmp_path / "data") == whole


def test_work_of_other_settings_and_changed_inputs_are_refused(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", 3, 10)
    mine = Preparation(config_of(inputs), tmp_path / "data", QUIET)
    plan = mine.plan()
    with pytest.raises(DataError, match=r"data\.work: was begun with other settings"):
        Preparation(config_of(inputs, valid_fraction=0.3), tmp_path / "data", QUIET).plan()
    (inputs / "0.jsonl").write_text("")
    with pytest.raises(DataError, match=r"0\.jsonl: had \d+ bytes when the work began, now it has 0"):
        mine.run_tasks(plan, range(len(plan.tasks)))


def test_bad_line_keeps_finished_tasks_and_skipping_it_goes_on(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path / "in", 4, 60)
    bad = inputs / "3.jsonl"
    bad.write_bytes(bad.read_bytes() + b"{\n\xff\xff\n")
    with pytest.raises(DataError, match=r"3\.jsonl:62: line is no JSON"):
        prepare(
            config_of(inputs, max_bytes=None, tokenizer={"path": str(tokenizer_of(tmp_path))}), tmp_path / "d", QUIET
        )
    plan = load_plan(config_of(inputs, tokenizer={"path": str(tokenizer_of(tmp_path))}), tmp_path / "d.work")
    assert plan is not None and any(load_result(tmp_path / "d.work", plan, number) for number in range(2))
    skipping = config_of(inputs, on_error="skip", tokenizer={"path": str(tokenizer_of(tmp_path))})
    manifest = prepare(skipping, tmp_path / "d", QUIET)
    assert manifest.skipped["web"].damaged == 2
    report = (tmp_path / "d" / "skipped.txt").read_text().splitlines()
    assert "3.jsonl:62" in report[0]
    assert "3.jsonl:63" in report[1]


def tokenizer_of(folder: Path) -> Path:
    from data_prep.tokenizers.tokenizer import train_sentencepiece

    path = folder / "given.model"
    if not path.exists():
        train_sentencepiece([" ".join(WORDS)] * 50, 300, path)
    return path


def write_run(folder: Path, inputs: Path) -> list[str]:
    """A run's configuration; the command that prepares its data."""
    run = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    run["data"] = {"path": str(folder / "data"), "sequence_length": 512}
    run["data"]["prepare"] = json.loads(config_of(inputs).model_dump_json(exclude_defaults=True))
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return [sys.executable, str(ROOT / "launchers" / "prepare_data.py"), "--config", str(folder / "run.yaml")]


def test_launcher_shares_the_work(inputs: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    from launchers.prepare_data import main

    arguments = write_run(tmp_path, inputs)[2:]
    assert main([*arguments, "--merge"]) == 2
    assert not (tmp_path / "data.work").exists()
    assert main([*arguments, "--plan"]) == 0
    assert main([*arguments, "--tasks", "2", "--task", "1"]) == 0
    assert main([*arguments, "--merge"]) == 2
    assert main([*arguments, "--tasks", "2", "--task", "0"]) == 0
    assert main([*arguments, "--merge"]) == 0
    assert main([*arguments, "--merge"]) == 0  # again: it is there
    assert content(tmp_path / "data") == whole
    with pytest.raises(SystemExit):
        main([*arguments, "--tasks", "2"])
    with pytest.raises(SystemExit):
        main([*arguments, "--tasks", "2", "--task", "2"])


@pytest.mark.slow
def test_killed_at_ten_random_moments_and_continued(tmp_path: Path) -> None:
    """SIGKILL to the whole process group, wherever it is: in the plan, in a task, in the merge."""
    inputs = write_inputs(tmp_path / "in", files=20, documents=400)
    expected = tmp_path / "expected"
    prepare(config_of(inputs, workers=2), expected, QUIET)
    command = [*write_run(tmp_path, inputs), "data.prepare.workers=2"]
    rng, kills = random.Random(1), 0
    finished: set[tuple[Path, int]] = set()
    work = tmp_path / "data.work" / "tasks"
    while kills < 10:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(timeout=rng.uniform(0.5, 6))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            now = {path: path.stat().st_ino for path in work.glob("[0-9]*/task.json")} if work.exists() else {}
            is_merged = (tmp_path / "data").exists()  # and killed while the work was removed
            assert finished <= set(now.items()) or not work.exists() or is_merged  # what was finished stays as it was
            finished = set(now.items())
        else:
            assert process.returncode == 0
            Preparation(config_of(inputs), tmp_path / "data", QUIET).finished()
            for path in (tmp_path / "data").iterdir():
                path.unlink()
            (tmp_path / "data").rmdir()
            finished = set()
    subprocess.run(command, check=True, capture_output=True)
    assert content(tmp_path / "data") == content(expected)
    PreparedFolder(tmp_path / "data").verify()
