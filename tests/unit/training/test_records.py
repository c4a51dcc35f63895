"""metrics.jsonl: strict JSON, whole lines, and every step exactly once whatever a run went through."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.monitoring.records import EvalRecord, MetricsFile, StepRecord, last_lines, read_metrics


def step(number: int, loss: float = 2.0, **other: Any) -> StepRecord:
    """A plausible record of step `number`."""
    return StepRecord(number, number * 8192, "memory", loss, 0.87, 1e-3, 12345.0, **other)


def write(path: Path, steps: range, resume_step: int) -> None:
    """One attempt of a run: opens the file, writes `steps`, ends."""
    with MetricsFile.open(path, resume_step) as metrics:
        for number in steps:
            metrics.write(step(number))


def test_the_lines_have_exactly_the_promised_keys(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsFile.open(path, 0) as metrics:
        metrics.write(
            step(1, mfu=0.5, gates={"in": 0.25}, data_wait=0.01, eta_seconds=9.0, trained_seconds=8.0, goodput=0.75)
        )
        metrics.write(EvalRecord(1, 8192, "memory", 2.5))
        metrics.write(EvalRecord(2, 16384, "memory", 2.5, 2.75))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {
        "step": 1,
        "tokens": 8192,
        "phase": "memory",
        "loss": 2.0,
        "grad_norm": 0.87,
        "lr": 1e-3,
        "tokens_per_second": 12345.0,
        "mfu": 0.5,
        "gates": {"in": 0.25},
        "data_wait": 0.01,
        "trained_seconds": 8.0,
        "goodput": 0.75,
    }
    assert lines[1] == {"step": 1, "tokens": 8192, "phase": "memory", "valid_loss": 2.5}
    assert lines[2] == {
        "step": 2,
        "tokens": 16384,
        "phase": "memory",
        "valid_loss": 2.5,
        "ablated_valid_loss": 2.75,
    }


def test_a_file_of_an_earlier_version_is_read_and_resumed_under_todays_names(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = {"step": 2, "tokens": 16384, "phase": "memory", "valid_loss": 2.5}
    path.write_text(json.dumps(line | {"wiped_valid_loss": 2.75}) + "\n")
    expected = line | {"ablated_valid_loss": 2.75}
    assert read_metrics(path) == ([], [expected])
    assert last_lines(path) == [expected]
    MetricsFile.open(path, 2).close()
    assert [json.loads(text) for text in path.read_text().splitlines()] == [expected]


def test_a_line_is_in_the_file_before_the_next_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile.open(path, 0)
    for number in (1, 2, 3):
        metrics.write(step(number))
        assert len(path.read_text().splitlines()) == number
    metrics.close()
    metrics.close()


def test_not_a_number_is_null_and_comes_back_as_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile.open(path, 0) as metrics:
        metrics.write(step(1, loss=math.nan, gates={"in": math.inf, "out": 0.5}))
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["loss"] is None
    steps, evaluations = read_metrics(path)
    assert steps[0]["gates"] == {"in": None, "out": 0.5}
    assert evaluations == []


def test_a_resume_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 13), 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])  # killed while it wrote step 12
    assert [line["step"] for line in read_metrics(path)[0]] == list(range(1, 12))
    write(path, range(11, 15), 10)
    assert [line["step"] for line in read_metrics(path)[0]] == list(range(1, 15))
    assert path.read_bytes().startswith(b"".join(whole.splitlines(keepends=True)[:10]))
    assert list(tmp_path.iterdir()) == [path]


def test_a_torn_line_that_looks_whole_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 3), 0)
    path.write_bytes(path.read_bytes()[:-1])  # only the newline is missing
    write(path, range(2, 4), 2)
    assert [line["step"] for line in read_metrics(path)[0]] == [1, 2, 3]


def test_garbage_in_the_middle_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 3), 0)
    good = path.read_bytes()
    path.write_bytes(b'\x00\x00\xff\n[1]\n{"step": "x", "loss": 1}\n{"step": 1}\n\n' + good)
    write(path, range(3, 4), 2)
    assert path.read_bytes().startswith(good)
    assert [line["step"] for line in read_metrics(path)[0]] == [1, 2, 3]


def test_an_evaluation_repeated_at_the_resumed_step_is_there_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    evaluation = EvalRecord(2, 16384, "memory", 2.5)
    for first, resume_step in ((1, 0), (3, 2)):
        with MetricsFile.open(path, resume_step) as metrics:
            metrics.write(evaluation)
            metrics.write(step(first))
            metrics.write(step(first + 1))
    steps, evaluations = read_metrics(path)
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert evaluations == [evaluation.to_json()]


def test_a_missing_file_reads_as_empty(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == ([], [])


@settings(max_examples=25, deadline=None)
@given(attempts=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8), st.integers(0, 400)), min_size=1, max_size=5))
def test_every_step_is_there_once_after_any_kills(attempts: list[tuple[int, int, int]]) -> None:
    """An attempt makes some steps, saves a checkpoint somewhere on the way, and loses the end of its file."""
    with tempfile.TemporaryDirectory() as folder:
        path, saved = Path(folder) / "metrics.jsonl", 0
        for steps, since_checkpoint, torn in attempts:
            write(path, range(saved + 1, saved + steps + 1), saved)
            kept = saved + max(0, steps - since_checkpoint)
            lines = path.read_bytes().splitlines(keepends=True)
            # A checkpoint is written after its step's line, so what is torn off lies behind it.
            after = b"".join(lines[kept:])
            path.write_bytes(b"".join(lines[:kept]) + after[: max(0, len(after) - torn)])
            saved = kept
        write(path, range(saved + 1, saved + 3), saved)
        assert [line["step"] for line in read_metrics(path)[0]] == list(range(1, saved + 3))
