"""Rank 0's reports: what cannot be written is said, and hides nothing."""

import errno
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.unit.training.config_case import changed
from training import reporter as reporting
from training.config import parse_config
from training.monitoring.records import EvalRecord
from training.reporter import Reporter
from training.tracking import facts
from training.tracking.tracker import NullTracker


@pytest.fixture
def reporter(tmp_path: Path) -> Reporter:
    config = parse_config(changed(run__output_dir=str(tmp_path)))
    config.run.folder.mkdir()
    return Reporter(config, 0, NullTracker())


def full(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_picture_that_cannot_be_drawn_ends_nothing(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reporting.log, "propagate", True)
    monkeypatch.setattr(reporting, "plot_loss", full)
    reporter.evaluation(EvalRecord(1, 256, "warmup", 2.0))
    assert "loss.png cannot be drawn (OSError: [Errno 28] No space left on device)" in caplog.text
    reporter.close(facts.End("FAILED", "failed", 1), 1)
    assert facts.read_end(reporter.folder) == ("FAILED", "failed")


def test_drawing_takes_a_hundredth_of_the_time(reporter: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, clock = [], [0.0]

    def draw(*_: Any) -> None:
        drawn.append(clock[0])
        clock[0] += 0.5

    monkeypatch.setattr(reporting, "plot_loss", draw)
    monkeypatch.setattr(reporting.time, "monotonic", lambda: clock[0])
    for now in (1.0, 2.0, 51.0, 52.0, 60.0):
        clock[0] = now
        reporter.evaluation(EvalRecord(1, 256, "warmup", 2.0))
    assert drawn == [1.0, 52.0]
    reporter.close(facts.End("FINISHED", "finished", 0), 1)
    assert drawn == [1.0, 52.0, 60.0], "the last one shows the whole run"


def test_a_full_disk_does_not_hide_why_a_run_ends(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reporting.log, "propagate", True)
    monkeypatch.setattr(reporter._metrics, "close", full)
    monkeypatch.setattr(facts, "write_end", full)
    reporter.close(facts.End("FAILED", "failed", 1), 1)
    assert "metrics.jsonl cannot be written" in caplog.text
    assert "ended.json cannot be written" in caplog.text
