"""An MLflow store. Only this file imports mlflow, inside functions because the import takes seconds.

Every error of MLflow, SQLAlchemy or requests becomes one of two: `AwayError`, which may succeed later, or
`RefusedError`, which will not. Neither contains a password.
"""

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

from data_prep.errors import one_line
from training.config.tracking import sqlite_address
from training.logs import without_secret
from training.tracking.names import safe_key

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_BATCH = 1000  # MLflow's own limits: metrics a call, params and tags a call, characters of a tag
MAX_PARAMS = 100
MAX_TAG = 5000
# At the start of a run a person waits, so a dead server gets 20 s instead of MLflow's minutes. During training a slow
# server gets 120 s. MLflow itself retries only once, because the tracker sends again what has failed.
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
PATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "120"}
# Without it, the end of a run prints the server's address with its password.
SILENT = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
# Without it, MLflow's page shows runs as evaluations of an assistant.
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
    """The store does not answer, or with an error that may go away: try again later."""


class RefusedError(Exception):
    """The store refused a call, and would refuse it again."""


class MissingError(RefusedError):
    """The run asked for is not in the store."""


@dataclass(frozen=True)
class Point:
    """One value of one metric; timestamp in milliseconds since the epoch."""

    key: str
    value: float
    timestamp: int
    step: int


@dataclass(frozen=True)
class Known:
    """What a store knows about a run."""

    run_id: str
    status: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    last_step: Mapping[str, int]  # by metric


class Store:
    """The MLflow store at an address. Methods raise `AwayError` or `RefusedError`."""

    def __init__(self, uri: str) -> None:
        """Keep the address; the store is first asked by another method."""
        self.uri, self._address = without_secret(uri), uri

    @functools.cached_property
    def _client(self) -> "MlflowClient":
        """MLflow's client. Raises `RefusedError` for an address of an unknown kind."""
        with _translated(always=RefusedError):
            from mlflow import MlflowClient

            return MlflowClient(tracking_uri=_absolute(self._address))

    def create(self, experiment: str, artifacts: str | None, name: str, tags: Mapping[str, str]) -> str:
        """Create a run; return its id.

        artifacts: where a new experiment keeps its artifacts; None: the server decides.
        """
        with _translated():
            found = self._client.get_experiment_by_name(experiment)
        if found is None:
            # another process may create the experiment at the same time
            with contextlib.suppress(RefusedError), _translated():
                self._client.create_experiment(experiment, artifact_location=artifacts, tags=EXPERIMENT_TAGS)
            with _translated():
                found = self._client.get_experiment_by_name(experiment)
        if found is None or found.lifecycle_stage != "active":
            raise RefusedError(f"experiment {experiment!r} cannot be used there: deleted, or no permission")
        with _translated():
            return str(self._client.create_run(found.experiment_id, tags=dict(tags), run_name=name).info.run_id)

    def look(self, run_id: str) -> Known:
        """Return what the store knows of a run. Raises `MissingError` when it does not exist or was deleted."""
        with _translated():
            run: Run = self._client.get_run(run_id)
        if run.info.lifecycle_stage != "active":
            raise MissingError(f"run {run_id} was deleted")
        last = {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}
        return Known(run_id, run.info.status, dict(run.data.params), dict(run.data.tags), last)

    def reopen(self, run_id: str) -> None:
        """Set the run's status to RUNNING."""
        with _translated():
            self._client.update_run(run_id, status="RUNNING")

    def steps(self, run_id: str, key: str) -> set[int]:
        """Return the steps at which the run has a value of the metric `key`."""
        with _translated():
            return {int(point.step) for point in self._client.get_metric_history(run_id, key)}

    def params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Log params; MLflow refuses to change one."""
        from mlflow.entities import Param

        every = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(every), MAX_PARAMS):
            with _translated():
                self._client.log_batch(run_id, params=every[start : start + MAX_PARAMS])

    def points(self, run_id: str, points: Sequence[Point]) -> None:
        """Log at most `MAX_BATCH` values. Sending a point again with the same timestamp adds nothing."""
        from mlflow.entities import Metric

        with _translated():
            self._client.log_batch(run_id, [Metric(p.key, p.value, p.timestamp, p.step) for p in points])

    def tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags, without passwords and cut to MLflow's longest value."""
        from mlflow.entities import RunTag

        every = [RunTag(safe_key(key), without_secret(value)[:MAX_TAG]) for key, value in tags.items()]
        for start in range(0, len(every), MAX_PARAMS):
            with _translated():
                self._client.log_batch(run_id, tags=every[start : start + MAX_PARAMS])

    def artifact(self, run_id: str, path: Path, folder: str | None) -> None:
        """Upload a file, or the content of a folder, into the artifact folder `folder` (None: the top)."""
        with _translated():
            if path.is_dir():
                self._client.log_artifacts(run_id, str(path), folder)
            else:
                self._client.log_artifact(run_id, str(path), folder)

    def text(self, run_id: str, text: str, name: str) -> None:
        """Upload `text` as the artifact `name`."""
        with _translated():
            self._client.log_text(run_id, text, name)

    def end(self, run_id: str, status: Status, time_ms: int | None = None) -> None:
        """End the run with `status` at `time_ms` (milliseconds since the epoch; default: now)."""
        with _translated():
            self._client.set_terminated(run_id, status, time_ms)

    def register(self, name: str, run_id: str, folder: str, tags: Mapping[str, str]) -> str:
        """Make the run's artifact `folder` a new version of the registered model `name`; return its number."""
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
    """MLflow's monitors of this machine: CPU, memory, disk, network and, with nvidia-ml-py, GPUs."""

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(ImportError, RuntimeError):  # there is no GPU, or nvidia-ml-py is missing
            self._monitors.append(GPUMonitor())

    def read(self) -> dict[str, float]:
        """Return one sample, under MLflow's names of system metrics."""
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return found


@contextlib.contextmanager
def environment(wanted: Mapping[str, str], *, keep: bool = False) -> Iterator[None]:
    """Set environment variables inside the context, because some settings of MLflow have no other way.

    keep: leave variables that are already set unchanged.
    """
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
    """Return the present time in milliseconds since the epoch."""
    return int(time.time() * 1000)


@contextlib.contextmanager
def _translated(always: type[Exception] | None = None) -> Iterator[None]:
    try:
        yield
    except (AwayError, RefusedError):  # raised by `_client`, translated already
        raise
    except Exception as error:  # MLflow, SQLAlchemy and requests share no base class
        # secrets are removed before the text is cut, or a part of a password could remain
        text = without_secret(f"{type(error).__name__}: {one_line(error, None)}")[:300]
        # `from None`, because a chained traceback would print the address with its password
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
    # errors about the file that is sent are final; other OSErrors come from the network
    local = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
    return RefusedError if local else AwayError


def _absolute(uri: str) -> str:
    """Return `uri` with the path of an SQLite file made absolute, and make the file's folder."""
    match = re.fullmatch(r"sqlite(?:\+pysqlite)?:///(?!file:)([^?]*)(.*)", uri)
    if match is None:
        return uri
    path, options = match.groups()
    file = Path(unquote(path)).absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    return sqlite_address(file) + options
