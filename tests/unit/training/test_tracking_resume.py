"""A run that goes on whatever its MLflow store says, and stores in folders with odd names."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from sqlalchemy import make_url

from tests.e2e.commands import wait_until
from training.config.tracking import TrackingConfig, sqlite_address
from training.errors import ConfigError
from training.tracking import Tracker
from training.tracking.outbox import read_entries
from training.tracking.store import RefusedError, Store, _absolute

ODD = "50%20 what? #1 'x' ä@home"


@pytest.fixture(autouse=True)
def no_store_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []  # nothing is written into the current directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("odd") / ODD / "runs"


def start(runs: Path, run_id: str | None = None, **config: Any) -> Tracker:
    return Tracker.start(
        TrackingConfig(**{"system_seconds": 0, **config}),
        output_dir=runs, run_name="lm2", run_id=run_id, params={"a": 1}, tags={},
    )  # fmt: skip


def client(runs: Path) -> MlflowClient:
    """Another program, which is given the address that the run shows."""
    return MlflowClient(TrackingConfig().address(runs))


def test_a_store_in_a_folder_with_an_odd_name(runs: Path) -> None:
    tracker = start(runs)
    tracker.metrics(1, {"loss": 2.0})
    (runs / "lm2").mkdir(exist_ok=True)
    (runs / "lm2" / "note.txt").write_text("hello")
    tracker.artifact(runs / "lm2" / "note.txt")
    tracker.close("FINISHED")
    assert (runs / "mlflow.db").is_file()
    assert [path.name for path in runs.parent.parent.iterdir()] == [ODD]  # no file beside it
    assert [point.value for point in client(runs).get_metric_history(tracker.run_id, "loss")] == [2.0]
    stored = runs / "mlartifacts" / tracker.run_id / "artifacts" / "note.txt"
    assert stored.read_text() == "hello"
    again = start(runs, tracker.run_id)
    again.metrics(2, {"loss": 1.0})
    again.close("FINISHED")
    assert again.run_id == tracker.run_id
    assert len(client(runs).get_metric_history(tracker.run_id, "loss")) == 2


@pytest.mark.parametrize("name", ["plain", "a b", "a?b", "a#b", "50%", "50%20x", "a%3Fb", "a&b=c", "ä'\"", "a?b?c%%"])
def test_an_address_is_read_as_the_file_it_was_made_of(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("files") / name / "mlflow.db"
    for address in (sqlite_address(file), _absolute(sqlite_address(file))):
        url = make_url(address)
        assert (url.database, dict(url.query)) == (str(file), {})
    assert file.parent.is_dir()


def test_options_of_a_users_address_stay(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("files")
    url = make_url(_absolute(f"sqlite:///{folder}/a%20b/x.db?timeout=5"))
    assert (url.database, dict(url.query)) == (f"{folder}/a b/x.db", {"timeout": "5"})
    assert (folder / "a b").is_dir()


def first(runs: Path, experiment: str) -> str:
    """A run that was stopped after its first step."""
    tracker = start(runs, experiment=experiment)
    tracker.metrics(1, {"loss": 1.0})
    tracker.close("KILLED")
    return tracker.run_id


def spool(runs: Path) -> Path:
    return runs / "lm2" / "tracking-spool.jsonl"


def test_a_deleted_experiment_ends_no_resumed_run_and_what_it_records_waits(
    runs: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.tracking.tracker.LONGEST_PAUSE", 0.1)
    run_id = first(runs, "deleted")
    outside = client(runs)
    experiment = outside.get_experiment_by_name("deleted").experiment_id
    outside.delete_experiment(experiment)
    with caplog.at_level(logging.WARNING):
        resumed = start(runs, run_id, experiment="deleted")
        resumed.metrics(2, {"loss": 0.5})
        time.sleep(3)  # some attempts
    said = [record.message for record in caplog.records if "training goes on" in record.message]
    assert len(said) == 1 and "refuses this run" in said[0]
    assert resumed.run_id == run_id
    assert any(entry.get("step") == 2 for entry in read_entries(spool(runs)))
    outside.restore_experiment(experiment)
    wait_until(lambda: not resumed._outbox.peek(), 60, "what waited is sent")
    resumed.close("FINISHED")
    assert [point.step for point in outside.get_metric_history(run_id, "loss")] == [1, 2]
    assert outside.get_run(run_id).info.status == "FINISHED"


def test_a_new_run_in_a_deleted_experiment_is_refused(runs: Path) -> None:
    first(runs, "gone")
    client(runs).delete_experiment(client(runs).get_experiment_by_name("gone").experiment_id)
    with pytest.raises(ConfigError, match=r"tracking\.uri: .*experiment 'gone' cannot be used there: deleted"):
        start(runs, experiment="gone")


@pytest.mark.parametrize("uri", ["nowhere://x", "sqlite:////proc/nowhere/mlflow.db"])
def test_an_address_that_cannot_be_ends_no_resumed_run(uri: str, runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        resumed = start(runs, "0" * 32, uri=uri)
        resumed.metrics(5, {"loss": 0.5})
        resumed.close("KILLED")
    assert len([record for record in caplog.records if "training goes on" in record.message]) == 1
    assert any(entry.get("step") == 5 for entry in read_entries(spool(runs)))
    spool(runs).unlink()
    with pytest.raises(ConfigError, match=r"tracking\.uri: cannot record the run"):
        start(runs, uri=uri)


def test_a_store_of_no_known_kind_is_a_refusal() -> None:
    with pytest.raises(RefusedError):
        Store("nowhere://x").look("1")
