"""Input that changes: what was done is kept where its files are the same, and nothing is left out without a word."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from data_prep import DataError, Manifest, PrepareConfig, PreparedFolder, load_tokenizer, prepare
from data_prep.preparation import task as tasks
from data_prep.preparation.prepare import Preparation
from data_prep.shards.reading import Shard
from tests.unit.data_prep.test_data_tasks import ROOT, config_of, tokenizer_of, write_inputs, write_run

QUIET = Console(quiet=True)


def line(text: str) -> str:
    return json.dumps({"text": text}) + "\n"


def config(inputs: Path, **changes: object) -> PrepareConfig:
    """A task a file."""
    settings = {"tokenizer": {"path": str(tokenizer_of(inputs.parent))}, "task_bytes": 1, "valid_fraction": 0}
    return config_of(inputs, **(settings | changes))


def texts(folder: Path) -> list[str]:
    manifest = Manifest.load(folder)
    tokenizer = load_tokenizer(folder / manifest.tokenizer.file)
    shards = [Shard(folder, entry, manifest.token_type) for entry in manifest.shards]
    return sorted(
        tokenizer.decode(shard.tokens[a + 1 : b - 1].tolist())
        for shard in shards
        for a, b in zip(shard.offsets, shard.offsets[1:], strict=False)
    )


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / "in" / f"{name}.jsonl").write_text(line(f"text of {name}"))
    return tmp_path / "in"


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read in tasks."""
    read: list[str] = []
    original = tasks._inputs_of

    def noted(task: tasks.Task, source: object, checksum: bool = True) -> object:
        read.extend(Path(file.name).name for file in task.files if checksum)
        return original(task, source, checksum)  # type: ignore[arg-type]

    monkeypatch.setattr(tasks, "_inputs_of", noted)
    return read


def run(inputs: Path, **changes: object) -> str:
    """Prepares; returns what it says."""
    output = io.StringIO()
    prepare(config(inputs, **changes), inputs.parent / "data", Console(file=output, width=300))
    return output.getvalue()


def fail(inputs: Path) -> None:
    """A first try that does a and b, and fails in c."""
    (inputs / "c.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"c\.jsonl:1: line is no JSON"):
        run(inputs)


def test_a_repaired_file_is_done_and_the_others_are_kept(inputs: Path, done: list[str]) -> None:
    fail(inputs)
    done.clear()
    (inputs / "c.jsonl").write_text(line("repaired"))
    said = run(inputs)
    assert "web: the input has changed: 1 changed (" in said and "2 of 3 tasks were finished" in said
    assert done == ["c.jsonl"]
    assert texts(inputs.parent / "data") == ["repaired", "text of a", "text of b"]


def test_new_edited_and_removed_files(inputs: Path, done: list[str]) -> None:
    fail(inputs)
    done.clear()
    (inputs / "c.jsonl").unlink()
    (inputs / "aa.jsonl").write_text(line("new"))
    (inputs / "b.jsonl").write_text(line("TEXT of b"))  # of the same length
    said = run(inputs)
    assert "1 changed (" in said and "1 new (" in said and "1 gone (" in said
    assert sorted(done) == ["aa.jsonl", "b.jsonl"]
    assert texts(inputs.parent / "data") == ["TEXT of b", "new", "text of a"]


def test_a_file_that_was_only_touched_is_kept(inputs: Path, done: list[str]) -> None:
    fail(inputs)
    done.clear()
    os.utime(inputs / "a.jsonl", (1, 1))
    (inputs / "c.jsonl").write_text(line("repaired"))
    said = run(inputs)
    assert "1 changed (" in said and "a.jsonl" not in said and done == ["c.jsonl"]
    os.utime(inputs / "a.jsonl", (2, 2))
    assert "already prepared" in run(inputs)


def test_an_edit_of_the_same_length_at_the_same_time_of_a_finished_task(inputs: Path, done: list[str]) -> None:
    """By steps: what was done of an earlier text is done again, whoever planned it."""
    mine = Preparation(config(inputs), inputs.parent / "data", QUIET)
    mine.run_tasks(mine.plan(), range(3))
    (inputs / "a.jsonl").write_text(line("TEXT of a"))
    last = Preparation(config(inputs), inputs.parent / "data", QUIET)
    with pytest.raises(DataError, match=r"1 of 3 tasks are not finished \(0\)"):
        last.merge(last.existing_plan())
    assert last.pending(3) == [0]
    last.run_tasks(last.existing_plan(), range(3))
    last.merge(last.existing_plan())
    assert texts(inputs.parent / "data") == ["TEXT of a", "text of b", "text of c"]


def test_what_changes_while_it_is_read_is_not_taken(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = tasks.tokenize

    def edits(*given: object) -> object:
        (inputs / "b.jsonl").write_text(line("edited meanwhile"))
        return original(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(tasks, "tokenize", edits)
    with pytest.raises(DataError, match=r"changed while it was read|had .* bytes when the work began"):
        run(inputs)
    monkeypatch.undo()
    run(inputs)
    assert "edited meanwhile" in texts(inputs.parent / "data")


def test_a_file_added_during_the_work_is_not_left_out(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Preparation.run_tasks

    def adds(self: Preparation, *given: object) -> None:
        original(self, *given)  # type: ignore[arg-type]
        (inputs / "late.jsonl").write_text(line("late"))

    monkeypatch.setattr(Preparation, "run_tasks", adds)
    assert "1 new (" in run(inputs)
    assert "late" in texts(inputs.parent / "data")


def test_already_prepared_of_other_input_is_refused(inputs: Path) -> None:
    run(inputs)
    assert "already prepared" in run(inputs)
    (inputs / "d.jsonl").write_text(line("new"))
    with pytest.raises(DataError, match=r"was prepared from other input; web: 1 new \(.*d\.jsonl\); choose another"):
        run(inputs)
    (inputs / "d.jsonl").unlink()
    (inputs / "a.jsonl").write_text(line("TEXT of a"))
    with pytest.raises(DataError, match=r"web: 1 changed \(.*a\.jsonl\)"):
        run(inputs)
    for path in inputs.iterdir():
        path.unlink()
    inputs.rmdir()  # who has removed the whole corpus keeps the folder
    assert "not compared with its input" in run(inputs)


def test_a_sample_is_chosen_anew_among_other_documents(inputs: Path) -> None:
    fail(inputs)
    (inputs / "c.jsonl").write_text("".join(line(f"text {number}") for number in range(200)))
    run(inputs, max_bytes=None)
    sampled = config(inputs, max_bytes=100)
    prepare(sampled, inputs.parent / "fresh", QUIET)
    few = Preparation(config(inputs, max_bytes=100), inputs.parent / "some", QUIET)
    (inputs / "c.jsonl").write_text(line("text of c"))
    few.run_tasks(few.plan(), range(3))
    (inputs / "c.jsonl").write_text("".join(line(f"text {number}") for number in range(200)))
    few.run_tasks(few.existing_plan(), range(3))
    few.merge(few.existing_plan())
    assert texts(inputs.parent / "some") == texts(inputs.parent / "fresh")


LIMITED = """
import resource, sys
sys.path.insert(0, {root!r})
from launchers.prepare_data import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_a_sentence_and_the_same_command_goes_on(tmp_path: Path, workers: int) -> None:
    inputs = write_inputs(tmp_path / "in", 3, 120)
    command = [*write_run(tmp_path, inputs)[2:], f"data.prepare.workers={workers}"]
    command += ["data.prepare.shard_bytes=100000", f"data.prepare.tokenizer={{path: {tokenizer_of(tmp_path)}}}"]
    limited = subprocess.run(
        [sys.executable, "-c", LIMITED.format(root=str(ROOT)), *command], capture_output=True, text=True, cwd=ROOT
    )
    assert limited.returncode == 1, limited.stderr
    assert "error: " in limited.stderr and "free space" in limited.stderr and "Traceback" not in limited.stderr
    assert "run the same command again" in limited.stderr and not (tmp_path / "data").exists()
    whole = subprocess.run([sys.executable, str(ROOT / "launchers/prepare_data.py"), *command], cwd=ROOT)
    assert whole.returncode == 0
    PreparedFolder(tmp_path / "data").verify()
