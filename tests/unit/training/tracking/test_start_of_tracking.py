"""What is refused before a run is recorded, what no message shows, and tracking that is switched off."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from pydantic import ValidationError

from tests.unit.training.tracking.case import Serving, start
from training.errors import ConfigError
from training.tracking import NullTracker, TrackingConfig


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
