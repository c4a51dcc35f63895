"""Tracking against a real MLflow store in a SQLite file: one run for all attempts, no step twice, no password."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from pydantic import ValidationError
from werkzeug.serving import BaseWSGIServer

from tests.e2e.commands import ROOT, wait_until
from training.errors import ConfigError
from training.tracking import NullTracker, Tracker, TrackingConfig
from training.tracking.outbox import read_entries

PARAMS = {
    "model": {"hidden_size": 64},
    "phases": [{"name": "warmup", "lr": 0.001}, {"name": "memory", "lr": 0.002}],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs, a space and an @ in its path; the first test that uses it makes its database."""
    return tmp_path_factory.mktemp("tracking") / "my runs@home"


@dataclass(frozen=True)
class Serving:
    """A real MLflow server, in this process."""

    running: BaseWSGIServer
    thread: threading.Thread

    @property
    def port(self) -> int:
        return self.running.port

    def stop(self) -> None:
        self.running.shutdown()
        self.running.server_close()
        self.thread.join()


@pytest.fixture
def server(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Serving]]:
    """Starts a server, anew on a port that one had; what it keeps outlives it."""
    from mlflow.server import app
    from werkzeug.serving import make_server

    folder = tmp_path_factory.mktemp("server")
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder}/mlflow.db")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(folder / "artifacts"))
    monkeypatch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
    every: list[Serving] = []

    def serve(port: int = 0) -> Serving:
        running = make_server("127.0.0.1", port, app, threaded=True)
        every.append(Serving(running, threading.Thread(target=running.serve_forever)))
        every[-1].thread.start()
        return every[-1]

    yield serve
    for one in every:
        if one.thread.is_alive():
            one.stop()


@pytest.fixture(autouse=True)
def no_store_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No address from the environment, and a current directory in which anything written would be seen."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def start(
    runs: Path,
    run_id: str | None = None,
    params: Mapping[str, Any] = PARAMS,
    tags: Mapping[str, str] | None = None,
    **config: Any,
) -> Tracker:
    """A tracker on `runs`."""
    return Tracker.start(
        TrackingConfig(**{"system_seconds": 0, **config}),
        output_dir=runs,
        run_name="lm2",
        run_id=run_id,
        params=params,
        tags=tags or {},
    )


def spool(runs: Path) -> Path:
    """What the tracker of `start` keeps until it is sent."""
    return runs / "lm2" / "tracking-spool.jsonl"


def client(runs: Path) -> MlflowClient:
    """What another program sees."""
    return MlflowClient(f"sqlite:///{runs}/mlflow.db")


def history(runs: Path, run_id: str, key: str) -> list[tuple[int, float]]:
    """(step, value) of every stored point of `key`, by step."""
    return sorted((point.step, point.value) for point in client(runs).get_metric_history(run_id, key))


def test_a_run_has_its_params_tags_metrics_and_status(runs: Path) -> None:
    tracker = start(runs, tags={"git": "abc", "data": "http://me:s3cret@host/x"})
    for step in range(1, 6):
        tracker.metrics(step, {"loss": 5.0 - step, "gates/in": 0.5})
    tracker.close("FINISHED")
    run = client(runs).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "lm2"
    assert run.data.params == {
        "model.hidden_size": "64",
        "phases.0.name": "warmup",
        "phases.0.lr": "0.001",
        "phases.1.name": "memory",
        "phases.1.lr": "0.002",
    }
    assert run.data.tags["git"] == "abc"
    assert run.data.tags["data"] == "http://host/x"
    assert history(runs, tracker.run_id, "loss") == [(step, 5.0 - step) for step in range(1, 6)]
    assert history(runs, tracker.run_id, "gates/in")[-1] == (5, 0.5)
    assert not spool(runs).exists()


def test_artifacts_lie_beside_the_runs_and_nothing_in_the_current_directory(runs: Path, tmp_path: Path) -> None:
    tracker = start(runs)
    picture = tmp_path / "loss.png"
    picture.write_bytes(b"png")
    tracker.artifact(picture, "figures")
    tracker.close("FINISHED")
    folder = runs / "mlartifacts" / tracker.run_id / "artifacts"
    assert (folder / "figures" / "loss.png").read_bytes() == b"png"
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_resume_continues_the_run_and_logs_no_step_twice(runs: Path) -> None:
    first = start(runs)
    for step in range(1, 11):
        first.metrics(step, {"loss": float(step)})
    first.close("KILLED")
    second = start(runs, run_id=first.run_id)
    assert second.run_id == first.run_id
    assert client(runs).get_run(first.run_id).info.status == "RUNNING"
    for step in range(8, 13):
        second.metrics(step, {"loss": float(step)})
    second.metrics(10, {"valid_loss": 4.0})  # the evaluation that the kill prevented
    second.close("FINISHED")
    assert history(runs, first.run_id, "loss") == [(step, float(step)) for step in range(1, 13)]
    assert history(runs, first.run_id, "valid_loss") == [(10, 4.0)]
    run = client(runs).get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert "config_changed" not in run.data.tags


def test_changed_params_become_a_tag_and_an_artifact(runs: Path) -> None:
    first = start(runs, params={"optim": {"lr": 0.1, "beta": 0.9}, "old": 1})
    first.close("KILLED")
    second = start(runs, run_id=first.run_id, params={"optim": {"lr": 0.2, "beta": 0.9}, "new": 2})
    second.close("FINISHED")
    run = client(runs).get_run(first.run_id)
    assert run.data.params == {"optim.lr": "0.1", "optim.beta": "0.9", "old": "1", "new": "2"}
    assert run.data.tags["config_changed"] == "new: absent -> 2; old: 1 -> absent; optim.lr: 0.1 -> 0.2"
    (changed,) = (runs / "mlartifacts" / first.run_id / "artifacts" / "config_changed").iterdir()
    assert yaml.safe_load(changed.read_text())["optim"]["lr"] == 0.2


def test_a_run_that_left_the_store_is_continued_by_a_new_one(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = start(runs, run_id="0" * 32)
    tracker.close("FINISHED")
    assert tracker.run_id != "0" * 32
    assert client(runs).get_run(tracker.run_id).data.tags["continues_run"] == "0" * 32
    assert "0" * 32 in caplog.text


def test_odd_and_long_params_and_more_than_one_call_takes(runs: Path) -> None:
    many = {f"layer{number}": number for number in range(250)}
    tracker = start(runs, params={"a@b": {"50%": "x" * 9000}, "none": None, "empty": {}, "ids": [1, 2], **many})
    tracker.close("FINISHED")
    params = client(runs).get_run(tracker.run_id).data.params
    assert params["a_b.50_"] == "x" * 500
    assert (params["none"], params["empty"], params["ids"]) == ("None", "{}", "[1, 2]")
    assert len(params) == 254


def test_values_that_are_not_finite_become_one_tag(runs: Path) -> None:
    tracker = start(runs)
    tracker.metrics(1, {"loss": 2.0, "grad norm@0": 1.0})
    tracker.metrics(2, {"loss": math.nan, "grad norm@0": math.inf})
    tracker.metrics(3, {"loss": math.nan, "grad norm@0": 3.0})
    tracker.close("FAILED")
    run = client(runs).get_run(tracker.run_id)
    assert history(runs, tracker.run_id, "loss") == [(1, 2.0)]
    assert history(runs, tracker.run_id, "grad norm_0") == [(1, 1.0), (3, 3.0)]
    assert run.data.tags["not_finite.loss"] == "nan first at step 2"
    assert run.data.tags["not_finite.grad norm_0"] == "inf first at step 2"
    assert run.info.status == "FAILED"


def test_log_every_steps_thins_steps_and_not_evaluations(runs: Path) -> None:
    tracker = start(runs, log_every_steps=10)
    for step in range(1, 26):
        tracker.metrics(step, {"loss": 1.0})
    tracker.metrics(25, {"valid_loss": 2.0}, always=True)
    tracker.close("FINISHED")
    assert [step for step, _ in history(runs, tracker.run_id, "loss")] == [10, 20]
    assert history(runs, tracker.run_id, "valid_loss") == [(25, 2.0)]


def test_more_metrics_than_one_call_takes_all_arrive(runs: Path) -> None:
    tracker = start(runs)
    for step in range(1, 1201):
        tracker.metrics(step, {"loss": float(step), "lr": 0.1})
    tracker.close("FINISHED")
    assert [step for step, _ in history(runs, tracker.run_id, "loss")] == list(range(1, 1201))


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


def test_a_killed_life_leaves_its_last_words_and_they_are_sent_once(runs: Path) -> None:
    first = start(runs)
    first.metrics(1, {"loss": 3.0})
    first.close("KILLED")
    # what a kill may leave: something sent but not yet taken out, something not sent, an end of its own, half a line
    entries = [
        {"step": 1, "time": 1, "metrics": {"loss": 3.0}},
        {"step": 2, "time": 2, "metrics": {"loss": 2.0}},
        {"tags": {"said": "before"}},
        {"status": "KILLED", "time": 3},
    ]
    spool(runs).write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"step": 3, "ti')
    second = start(runs, run_id=first.run_id)
    second.metrics(3, {"loss": 1.0})
    second.close("FINISHED")
    assert history(runs, first.run_id, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    run = client(runs).get_run(first.run_id)
    assert (run.info.status, run.data.tags["said"]) == ("FINISHED", "before")


def test_steps_that_only_the_metrics_file_has_are_sent_at_the_next_start(runs: Path) -> None:
    first = start(runs)
    first.close("KILLED")
    lines = [
        {"step": step, "tokens": 10 * step, "phase": "a", "loss": 5.0 - step, "grad_norm": None, "gates": {"in": 0.5}}
        for step in (1, 2, 3)
    ]
    evaluation = {"step": 2, "tokens": 20, "phase": "a", "valid_loss": 4.5}
    path = runs / "lm2" / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, evaluation]))
    second = start(runs, run_id=first.run_id, log_every_steps=3)
    second.close("FINISHED")
    assert history(runs, first.run_id, "train/loss") == [(3, 2.0)]
    third = start(runs, run_id=first.run_id)
    third.metrics(4, {"train/loss": 1.0})
    third.close("FINISHED")
    path.unlink()
    assert history(runs, first.run_id, "train/loss") == [(3, 2.0), (4, 1.0)]  # a later sync fills what thinning left
    assert history(runs, first.run_id, "eval/valid_loss") == [(2, 4.5)]
    assert history(runs, first.run_id, "memory/gate_in") == [(3, 0.5)]


def test_steps_that_a_return_to_a_checkpoint_undid_are_there_every_time(runs: Path) -> None:
    tracker = start(runs)
    for step, loss in [(1, 3.0), (2, 2.0)]:
        tracker.metrics(step, {"train/loss": loss})
    for loss in (90.0, 80.0):
        tracker.metrics(2, {"train/discarded_loss": loss})
    tracker.close("FINISHED")
    assert history(runs, tracker.run_id, "train/discarded_loss") == [(2, 80.0), (2, 90.0)]
    assert history(runs, tracker.run_id, "train/loss") == [(1, 3.0), (2, 2.0)]


def test_the_machine_is_sampled_at_the_steps(runs: Path) -> None:
    tracker = start(runs, system_seconds=0.05)
    step = 0
    while step < 400 and not any("system/" in key for key in tracker._delivery.last_step):
        step += 1
        tracker.metrics(step, {"loss": 1.0})
        threading.Event().wait(0.05)
    tracker.close("FINISHED")
    found = history(runs, tracker.run_id, "system/system_memory_usage_megabytes")
    assert found
    assert all(1 <= at <= step and value > 1 for at, value in found)
    assert "system/cpu_utilization_percentage" in client(runs).get_run(tracker.run_id).data.metrics


def test_a_run_goes_on_without_its_server_and_catches_up_in_the_same_attempt(
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
    assert slowest < 0.2
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


def test_the_ui_command_is_one_shell_line_for_this_store(runs: Path) -> None:
    tracker = start(runs)
    tracker.close("FINISHED")
    assert shlex.split(tracker.ui_command()) == [
        "mlflow", "ui", "--backend-store-uri", f"sqlite:///{runs}/mlflow.db", "--port", "5000",
    ]  # fmt: skip


def test_a_server_keeps_everything_and_nobody_hears_its_password(
    server: Callable[..., Serving], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = server().port
    uri = f"http://me:s3cret@127.0.0.1:{port}"
    # What a person may have set: at the end of a run MLflow itself prints its address.
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "false")
    first = start(tmp_path / "runs", uri=uri)
    first.metrics(1, {"loss": 2.0})
    first.close("KILLED")
    second = start(tmp_path / "runs", run_id=first.run_id, params={"tracking": {"uri": uri}}, uri=uri)
    second.metrics(1, {"loss": 2.0})
    second.metrics(2, {"loss": 1.0})
    second.close("FINISHED")
    outside = MlflowClient(f"http://127.0.0.1:{port}")
    run = outside.get_run(first.run_id)
    assert sorted(point.step for point in outside.get_metric_history(first.run_id, "loss")) == [1, 2]
    assert run.data.params["tracking.uri"] == f"http://127.0.0.1:{port}"
    assert [file.path for file in outside.list_artifacts(first.run_id)] == ["config_changed"]
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert run.info.status == "FINISHED"
    assert second.ui_command() == f"http://127.0.0.1:{port}"
    assert list((tmp_path / "runs" / "lm2").iterdir()) == []
    captured = capsys.readouterr()
    assert "s3cret" not in captured.out + captured.err + str(run.to_dictionary())
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "false"


@pytest.mark.parametrize("source", ["config", "environment"])
def test_a_dead_server_is_refused_with_the_way_out_and_without_its_password(
    source: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:  # a port on which nothing listens
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://me:s3cret@127.0.0.1:{port}"
    if source == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError) as caught:
        start(runs, uri=uri if source == "config" else None)
    message = str(caught.value)
    assert f"tracking.uri: cannot record the run in 'http://127.0.0.1:{port}'" in message
    assert "tracking.enabled=false" in message
    assert "s3cret" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__  # a chained traceback would print the address
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"tracking\.uri"):
        start(tmp_path / "file" / "runs")


def test_switched_off_does_nothing_and_writes_nothing(tmp_path: Path) -> None:
    tracker = start(tmp_path / "runs", enabled=False)
    assert isinstance(tracker, NullTracker)
    tracker.metrics(1, {"loss": 1.0})
    tracker.tags({"a": "b"})
    tracker.artifact(tmp_path / "x")
    tracker.close("FINISHED")
    assert (tracker.run_id, tracker.uri, tracker.ui_command()) == ("", "", "")
    assert list(tmp_path.iterdir()) == []


def test_unknown_keys_and_bad_values_are_refused() -> None:
    for wrong in ({"experimant": "x"}, {"log_every_steps": 0}, {"experiment": ""}):
        with pytest.raises(ValidationError):
            TrackingConfig(**wrong)  # type: ignore[arg-type]


def test_one_file_imports_mlflow() -> None:
    importing = re.compile(r"^\s*(import|from) mlflow\b", re.MULTILINE)
    rooms = ("data_prep", "model", "training", "evaluation", "launchers")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    found = [path.relative_to(ROOT).as_posix() for path in files if importing.search(path.read_text(encoding="utf-8"))]
    assert found == ["training/tracking/store.py"]
