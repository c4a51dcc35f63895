"""A tracker on a real MLflow store in a SQLite file, and what another program sees of it."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from werkzeug.serving import BaseWSGIServer

from training.tracking import Tracker, TrackingConfig

PARAMS = {
    "model": {"hidden_size": 64},
    "phases": [{"name": "warmup", "lr": 0.001}, {"name": "memory", "lr": 0.002}],
}


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
