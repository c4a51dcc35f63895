"""What a run has in a real MLflow store: parameters, tags, every step once, figures, the state of its machine."""

import math
import shlex
import threading
from pathlib import Path

from tests.unit.training.tracking.case import client, history, spool, start


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


def test_the_ui_command_is_one_shell_line_for_this_store(runs: Path) -> None:
    tracker = start(runs)
    tracker.close("FINISHED")
    assert shlex.split(tracker.ui_command()) == [
        "mlflow", "ui", "--backend-store-uri", f"sqlite:///{runs}/mlflow.db", "--port", "5000",
    ]  # fmt: skip
