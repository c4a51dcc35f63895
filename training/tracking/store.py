"""An MLflow store, and the only file that imports mlflow (lazily, because that takes seconds).

Whatever MLflow, SQLAlchemy or requests raise comes out as one of two errors: `AwayError`, try again later, or
`RefusedError`, trying again changes nothing.  Neither ever has a password in it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from training.config.tracking import sqlite_address
from training.logs import without_secret
from training.tracking.names import safe_key

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_BATCH = 1000  # MLflow's own limits: metrics a call, params and tags a call, characters of a tag
MAX_PARAMS = 100
MAX_TAG = 5000
# At the start a person waits: a dead server gets seconds, not the minutes MLflow gives it. While training, a slow one
# has time for its answer, but a refused connection is at once our own matter: what it misses is sent again.
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
PATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "120"}
# Or the end of a run prints the server's address, password and all.
SILENT = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
# Or MLflow's page takes runs for evaluations of an assistant.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
REFUSALS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "MALFORMED_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}

Status = Literal["FINISHED", "FAILED", "KILLED"]


class AwayError(Exception):
    """The store does not answer, or not sensibly: try again later."""


class RefusedError(Exception):
    """The store said no, and will again."""


class MissingError(RefusedError):
    """What was asked for is not in the store."""


@dataclass(frozen=True)
class Point:
    """One value of one metric; timestamp in milliseconds."""

    key: str
    value: float
    timestamp: int
    step: int


@dataclass(frozen=True)
class Known:
    """What a store has of a run."""

    run_id: str
    status: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    last_step: Mapping[str, int]  # of every metric


class Store:
    """The store at an address."""

    def __init__(self, uri: str) -> None:
        """Nothing is asked of it yet."""
        self.uri, self._address = without_secret(uri), uri

    @functools.cached_property
    def _client(self) -> MlflowClient:
        """Raises `RefusedError` for an address of no known kind, at the first use."""
        with _translated(always=RefusedError):
            from mlflow import MlflowClient

            return MlflowClient(tracking_uri=_absolute(self._address))

    def create(self, experiment: str, artifacts: str | None, name: str, tags: Mapping[str, str]) -> str:
        """Make a run; its id.  `artifacts` is the address of a new experiment's, `None` leaves that to a server."""
        with _translated():
            found = self._client.get_experiment_by_name(experiment)
        if found is None:
            # another run of a sweep may be faster
            with contextlib.suppress(RefusedError), _translated():
                self._client.create_experiment(experiment, artifact_location=artifacts, tags=EXPERIMENT_TAGS)
            with _translated():
                found = self._client.get_experiment_by_name(experiment)
        if found is None or found.lifecycle_stage != "active":
            raise RefusedError(f"experiment {experiment!r} cannot be used there: deleted, or no permission")
        with _translated():
            return str(self._client.create_run(found.experiment_id, tags=dict(tags), run_name=name).info.run_id)

    def look(self, run_id: str) -> Known:
        """What is there of a run; raises `MissingError` when it is not there, or was deleted."""
        with _translated():
            run: Run = self._client.get_run(run_id)
        if run.info.lifecycle_stage != "active":
            raise MissingError(f"run {run_id} was deleted")
        last = {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}
        return Known(run_id, run.info.status, dict(run.data.params), dict(run.data.tags), last)

    def reopen(self, run_id: str) -> None:
        """The run goes on."""
        with _translated():
            self._client.update_run(run_id, status="RUNNING")

    def steps(self, run_id: str, key: str) -> set[int]:
        """Every step at which the run has a value of `key`."""
        with _translated():
            return {int(point.step) for point in self._client.get_metric_history(run_id, key)}

    def params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        every = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(every), MAX_PARAMS):
            with _translated():
                self._client.log_batch(run_id, params=every[start : start + MAX_PARAMS])

    def points(self, run_id: str, points: Sequence[Point]) -> None:
        """At most `MAX_BATCH` values.  Sending one again, time and all, adds none."""
        from mlflow.entities import Metric

        with _translated():
            self._client.log_batch(run_id, [Metric(p.key, p.value, p.timestamp, p.step) for p in points])

    def tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        every = [RunTag(safe_key(key), without_secret(value)[:MAX_TAG]) for key, value in tags.items()]
        for start in range(0, len(every), MAX_PARAMS):
            with _translated():
                self._client.log_batch(run_id, tags=every[start : start + MAX_PARAMS])

    def artifact(self, run_id: str, path: Path, folder: str | None) -> None:
        """A file, or what is in a folder."""
        with _translated():
            if path.is_dir():
                self._client.log_artifacts(run_id, str(path), folder)
            else:
                self._client.log_artifact(run_id, str(path), folder)

    def text(self, run_id: str, text: str, name: str) -> None:
        """An artifact from memory."""
        with _translated():
            self._client.log_text(run_id, text, name)

    def end(self, run_id: str, status: Status, time_ms: int | None = None) -> None:
        with _translated():
            self._client.set_terminated(run_id, status, time_ms)

    def register(self, name: str, run_id: str, folder: str, tags: Mapping[str, str]) -> str:
        """A new version of the registered model `name` from the run's artifact `folder`; its number."""
        from mlflow.exceptions import MlflowException

        with _translated():
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            source = f"{self._client.get_run(run_id).info.artifact_uri}/{folder}"
            return str(self._client.create_model_version(name, source, run_id, tags=dict(tags)).version)


class SystemMonitors:
    """MLflow's own readings of this machine: processor, memory, disk, network and, with nvidia-ml-py, GPUs."""

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(ImportError, RuntimeError):  # no GPU, or no library to ask it
            self._monitors.append(GPUMonitor())

    def read(self) -> dict[str, float]:
        """One sample, by MLflow's own names."""
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return found


@contextlib.contextmanager
def environment(wanted: Mapping[str, str], *, keep: bool = False) -> Iterator[None]:
    """Environment variables for a time: MLflow takes some settings from nowhere else.  `keep`: what is set stays."""
    wanted = {name: value for name, value in wanted.items() if not (keep and name in os.environ)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def now_ms() -> int:
    return int(time.time() * 1000)


@contextlib.contextmanager
def _translated(always: type[Exception] | None = None) -> Iterator[None]:
    try:
        yield
    except (AwayError, RefusedError):  # the client could not be made
        raise
    except Exception as error:  # MLflow, SQLAlchemy and requests share no base class
        text = without_secret(f"{type(error).__name__}: {' '.join(str(error).split())}")[:300]
        # `from None`: the chained traceback would print the address with its password.
        raise (always or _kind(error))(text) from None


def _kind(error: Exception) -> type[Exception]:
    from mlflow.exceptions import MlflowException
    from requests import HTTPError, RequestException

    if isinstance(error, HTTPError) and error.response is not None:
        code = error.response.status_code
        return RefusedError if 400 <= code < 500 and code not in (401, 403, 408, 429) else AwayError
    if isinstance(error, RequestException):
        return AwayError
    if isinstance(error, MlflowException):
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return MissingError
        return RefusedError if error.error_code in REFUSALS else AwayError
    # of the file to be sent; the network's errors are OSErrors too
    local = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
    return RefusedError if local else AwayError


def _absolute(uri: str) -> str:
    """`uri` with an SQLite file's path made absolute; its folder is made."""
    match = re.fullmatch(r"sqlite(?:\+pysqlite)?:///(?!file:)([^?]*)(.*)", uri)
    if match is None:
        return uri
    path, options = match.groups()
    file = Path(unquote(path)).absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    return sqlite_address(file) + options
