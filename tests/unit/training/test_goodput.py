"""Goodput of a run over several attempts: steps that count over the time since the first start."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from training.monitoring.goodput import Goodput, goodput
from training.monitoring.records import MetricsFile, StepRecord, read_metrics
from training.tracking import facts
from training.tracking.names import metrics_of

SECONDS = 10.0  # of a step
AGO = 200.0  # seconds since the first start


@pytest.fixture
def run(tmp_path: Path) -> Path:
    stamp = time.strftime(facts.STAMP, time.gmtime(time.time() - AGO))
    facts.add_start(tmp_path, facts.this_start(0, 1) | {"time": stamp})
    return tmp_path


def attempt(folder: Path, resume_step: int, last: int, **changes: Any) -> None:
    """An attempt that goes on after `resume_step` and writes steps up to `last`."""
    with MetricsFile.open(folder / "metrics.jsonl", resume_step) as metrics:
        counted = Goodput(folder)
        for step in range(resume_step + 1, last + 1):
            record = StepRecord(step, step * 64, "only", 2.0, 1.0, 1e-3, 6.4, seconds=SECONDS)
            metrics.write(counted.counted(StepRecord(**vars(record) | changes)))


def last_line(folder: Path) -> dict[str, Any]:
    return read_metrics(folder / "metrics.jsonl")[0][-1]


def test_steps_over_the_time_since_the_first_start(run: Path) -> None:
    attempt(run, 0, 5)
    assert last_line(run)["trained_seconds"] == 5 * SECONDS
    assert last_line(run)["goodput"] == pytest.approx(5 * SECONDS / AGO, rel=0.05)
    assert metrics_of(last_line(run))["throughput/goodput"] == last_line(run)["goodput"]


def test_a_step_that_is_taken_again_counts_once(run: Path) -> None:
    attempt(run, 0, 5)
    facts.add_start(run, facts.this_start(3, 1))  # the first start is the one that counts
    attempt(run, 3, 7)  # after a kill the checkpoint of step 3 is where it goes on
    assert last_line(run)["trained_seconds"] == 7 * SECONDS
    assert last_line(run)["goodput"] == pytest.approx(7 * SECONDS / AGO, rel=0.05)


def test_an_update_that_is_left_out_does_not_count(run: Path) -> None:
    attempt(run, 0, 2)
    attempt(run, 2, 3, loss=math.nan)
    assert last_line(run)["trained_seconds"] == 2 * SECONDS


def test_what_is_not_known_is_not_invented(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 2)  # no starts.jsonl
    assert last_line(tmp_path)["goodput"] is None
    assert "throughput/goodput" not in metrics_of(last_line(tmp_path))
    (tmp_path / facts.STARTS_FILE).write_text(json.dumps({"time": "yesterday"}) + "\n")
    assert facts.first_start(tmp_path) is None
    assert goodput(5.0, None, 10.0) is goodput(None, 5.0, 10.0) is goodput(5.0, 10.0, 10.0) is None
    assert goodput(20.0, 0.0, 10.0) == 1.0


def test_status_says_it_up_to_the_end_of_a_run_that_has_ended(run: Path) -> None:
    from training.monitoring.status import _until

    attempt(run, 0, 5)
    facts.write_end(run, facts.End("KILLED", "stopped", exit_code=75))
    ended = time.time() - AGO / 2
    for path in run.iterdir():
        os.utime(path, (ended, ended))
    assert _until(run, "stopped") == pytest.approx(ended, abs=1)
    assert _until(run, "waiting") == pytest.approx(time.time(), abs=5)  # a queue's time is the run's
