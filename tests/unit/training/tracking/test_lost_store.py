"""A store or a server that is away, breaks or refuses: training goes on, and a later start sends what was kept."""

import logging
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.e2e.commands import wait_until
from tests.unit.training.tracking.case import Serving, client, history, spool, start
from training.tracking.outbox import read_entries


def test_a_store_that_breaks_costs_two_warnings_and_a_later_sync_brings_everything(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(runs).close("FINISHED")  # so that there is a database to copy, whichever test runs first
    shutil.copy(runs / "mlflow.db", tmp_path / "mlflow.db")
    tracker = start(tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("ALTER TABLE metrics RENAME TO gone")
    with caplog.at_level(logging.WARNING, "memtrain.tracking"):
        tracker.metrics(1, {"loss": 1.0})
        tracker.close("KILLED")
        tracker.close("FINISHED")  # the first word holds
    messages = [record.getMessage() for record in caplog.records if record.name == "memtrain.tracking"]
    assert len(messages) == 2
    assert "training goes on" in messages[0]
    assert "mlflow_sync.py" in messages[1]
    kinds = [next(iter({"metrics", "status"} & entry.keys())) for entry in read_entries(spool(tmp_path))]
    assert kinds == ["metrics", "status"]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("ALTER TABLE gone RENAME TO metrics")
    again = start(tmp_path, run_id=tracker.run_id)
    again.metrics(2, {"loss": 0.5})
    again.close("FINISHED")
    assert history(tmp_path, tracker.run_id, "loss") == [(1, 1.0), (2, 0.5)]
    assert client(tmp_path).get_run(tracker.run_id).info.status == "FINISHED"
    assert not spool(tmp_path).exists()


def test_what_a_store_refuses_for_good_holds_up_nothing(runs: Path, tmp_path: Path) -> None:
    tracker = start(runs)
    tracker.artifact(tmp_path / "not there.png")
    tracker.tags({"a": "b"})
    tracker.metrics(1, {"loss": 1.0})
    tracker.close("FINISHED")
    run = client(runs).get_run(tracker.run_id)
    assert (run.info.status, run.data.tags["a"]) == ("FINISHED", "b")
    assert history(runs, tracker.run_id, "loss") == [(1, 1.0)]


def test_a_run_goes_on_without_its_server_and_catches_up_in_the_same_life(
    server: Callable[..., Serving], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is away at the start, comes, goes while training, and comes back; no call waits for it."""
    monkeypatch.setattr("training.tracking.tracker.LONGEST_PAUSE", 0.1)
    up = server()
    uri = f"http://127.0.0.1:{up.port}"
    first = start(tmp_path, uri=uri)
    first.metrics(1, {"loss": 1.0})
    first.close("KILLED")
    up.stop()
    second = start(tmp_path, run_id=first.run_id, uri=uri, tags={"restarts": "1"})
    slowest = 0.0
    for step in range(2, 200):
        began = time.perf_counter()
        second.metrics(step, {"loss": 1.0 / step})
        second.tags({"last": str(step)})
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 1  # an attempt to reach the server takes longer
    up = server(up.port)
    wait_until(lambda: not second._outbox.peek(), 60, "the outbox is empty")
    up.stop()
    second.metrics(200, {"loss": 0.0})
    second.close("KILLED")
    assert len(read_entries(spool(tmp_path))) == 2
    never = start(tmp_path, run_id=first.run_id, uri=uri, tags={"restarts": "2"})  # nor does this attempt see a server
    never.close("KILLED")
    up = server(up.port)
    third = start(tmp_path, run_id=first.run_id, uri=uri)
    third.close("FINISHED")
    outside = MlflowClient(uri)
    assert sorted(p.step for p in outside.get_metric_history(first.run_id, "loss")) == list(range(1, 201))
    run = outside.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.tags["last"], run.data.tags["restarts"]) == ("199", "2")
