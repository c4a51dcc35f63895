"""A run that was stopped or killed goes on as the same MLflow run, and no step is there twice."""

import json
from pathlib import Path

import pytest
import yaml

from tests.unit.training.tracking.case import client, history, spool, start


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
