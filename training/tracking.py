"""Records a run in MLflow: one run for the whole life of a training, however often it is stopped and resumed.

Only rank 0 starts a tracker, and only this file imports mlflow, lazily, because that takes seconds. During
training nothing here waits or raises: calls go into a queue that one thread empties in batches. Metrics that the
server does not take are kept in the run's folder and sent when it answers again, in this life or a later one; what
else it refuses is counted and said once.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from training.errors import ConfigError, TrainingError
from training.logs import without_secret, without_secrets
from training.spool import SPOOL_FILE, Point, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

log = logging.getLogger("memtrain.tracking")

BATCH_SECONDS = 1.0  # metrics are collected this long, then sent in one call
CLOSE_SECONDS = 30.0  # how long the end of a run waits for a slow server
MAX_BATCH = 1000  # MLflow's own limits: metrics a call, params a call
MAX_PARAMS = 100
MAX_VALUE = 500
MAX_TAG = 5000
# At the start a person waits: a dead server gets seconds, not the minutes MLflow gives it while training.
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
# Or the end of a run prints the server's address, password and all.
SILENT = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}

Status = Literal["FINISHED", "FAILED", "KILLED"]


class TrackingConfig(BaseModel):
    """The `tracking` section of a run's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(True, description="record the run in MLflow")
    experiment: str = Field("memtrain", min_length=1, description="MLflow experiment the run belongs to")
    uri: str | None = Field(
        None,
        description="MLflow store: sqlite:///FILE or http(s)://SERVER; default: the environment variable "
        "MLFLOW_TRACKING_URI, else one database beside all runs, sqlite:///{run.output_dir}/mlflow.db",
    )
    log_every_steps: int = Field(1, ge=1, description="send the metrics of every n-th step")


class Tracker:
    """An open MLflow run. Every method but `start` returns at once and never raises."""

    run_id: str
    uri: str  # without a password
    lost: int  # calls the store refused

    def __init__(self, client: MlflowClient, uri: str, run: Run, log_every_steps: int, spool: Spool) -> None:
        """Use `Tracker.start`."""
        self._spool = spool
        self.run_id = run.info.run_id
        self.uri = without_secret(uri)
        self._client = client
        self._every = log_every_steps
        # The store keeps each key's highest step. Per key: an evaluation may come after its step's loss.
        self._last_step = {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}
        for point in spool.waiting:  # of an earlier life; they will be sent
            self._last_step[point.key] = max(point.step, self._last_step.get(point.key, -1))
        self._nonfinite: set[str] = set()
        self.lost = 0
        self._queue: queue.Queue[list[Metric] | Callable[[], Any] | None] = queue.Queue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)
        self._thread.start()

    @classmethod
    def start(
        cls,
        config: TrackingConfig,
        *,
        output_dir: Path,
        run_name: str,
        run_id: str | None,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> Tracker:
        """Open a new run, or continue `run_id`; with `enabled: false` a tracker that does nothing.

        Args:
            config: the `tracking` section.
            output_dir: folder of all runs: the default database and, without a server, `mlartifacts`.
            run_name: shown in MLflow's list.
            run_id: the run to continue. One that the store lost becomes a new run, said aloud.
            params: the whole resolved configuration, nested. Logged once; what a resumed run changed becomes
                the tag `config_changed` and a second artifact, because MLflow refuses to change a param.
            tags: set again at every start.

        Raises:
            ConfigError: the store cannot be opened.
        """
        if not config.enabled:
            return NullTracker()
        uri = _store(config, output_dir)
        # A server chooses for itself; a database would choose the current directory.
        remote = uri.startswith(("http://", "https://"))
        artifacts = None if remote else (output_dir.resolve() / "mlartifacts").as_uri()
        try:
            uri = _absolute(uri)
            with _environment({name: os.environ.get(name, value) for name, value in IMPATIENT.items()}):
                from mlflow import MlflowClient

                client = MlflowClient(tracking_uri=uri)
                run = _open_run(client, config.experiment, artifacts, run_name, run_id)
                _log_config(client, run, without_secrets(params))
                _set_tags(client, run.info.run_id, tags)
        except Exception as error:  # MLflow, SQLAlchemy and requests share no base class
            # `from None`: the chained traceback would print the address with its password.
            raise ConfigError(
                f"tracking.uri: cannot record the run in {without_secret(uri)!r} "
                f"({type(error).__name__}: {without_secret(str(error))[:300]}). "
                "Correct the address or start the server, or train without MLflow: tracking.enabled=false"
            ) from None
        return cls(client, uri, run, config.log_every_steps, Spool(output_dir / run_name / SPOOL_FILE))

    def ui_command(self) -> str:
        """The shell command that opens this store's page, or the address of a server; never a password."""
        if self.uri.startswith(("http://", "https://")):
            return self.uri
        return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)} --port 5000"

    def metrics(self, step: int, values: Mapping[str, float], *, always: bool = False) -> None:
        """Record `values` at `step`; `always` (evaluations) also between two `log_every_steps`.

        What the run already has from before a resume is left out, so every step is there once. A value that
        is not finite is left out too, and its first time becomes a tag: MLflow makes infinity 1.8e308.
        """
        if step % self._every and not always:
            return
        from mlflow.entities import Metric

        batch, now = [], int(time.time() * 1000)
        for name, value in values.items():
            key = _key(name)
            if step <= self._last_step.get(key, -1):
                continue
            self._last_step[key] = step
            if math.isfinite(value):
                batch.append(Metric(key, float(value), now, step))
            elif key not in self._nonfinite:
                self._nonfinite.add(key)
                self.tags({f"not_finite.{key}": f"{value} first at step {step}"})
        if batch:
            self._queue.put(batch)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Store the file at `path` with the run. It is read a moment later: leave it there."""
        self._queue.put(lambda: self._client.log_artifact(self.run_id, str(path), folder))

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        wanted = dict(tags)
        self._queue.put(lambda: _set_tags(self._client, self.run_id, wanted))

    def close(self, status: Status) -> None:
        """Send what is left and end the run; gives up on a dead server after `CLOSE_SECONDS`."""
        if self._closing.is_set():
            return
        self._queue.put(lambda: self._end(status))
        self._queue.put(None)
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            log.warning("MLflow (%s) does not answer; the end of the run is not recorded there", self.uri)
        elif self.lost:
            kept = (
                f"; {self._spool.path} keeps {n} values for the next start" if (n := len(self._spool.waiting)) else ""
            )
            log.warning("MLflow (%s) lost %d calls of this run; metrics.jsonl has all%s", self.uri, self.lost, kept)

    def _send_all(self) -> None:
        """The thread: until `close`, take what waits, join the metrics, send; only the end must be last."""
        ended = False
        while not ended:
            waiting = [self._queue.get()]
            self._closing.wait(BATCH_SECONDS)
            while not self._queue.empty():
                waiting.append(self._queue.get())
            ended = waiting[-1] is None
            metrics = [metric for item in waiting if isinstance(item, list) for metric in item]
            self._send(metrics)
            for item in waiting:
                if callable(item):
                    self._attempt(item)

    def _send(self, metrics: list[Metric]) -> None:
        """What waits from before, then `metrics`; what the store does not take waits on."""
        from mlflow.entities import Metric

        now = [Point(m.key, m.value, m.timestamp, m.step) for m in metrics]
        everything = [*self._spool.waiting, *now]
        for start in range(0, len(everything), MAX_BATCH):
            part = [Metric(p.key, p.value, p.timestamp, p.step) for p in everything[start : start + MAX_BATCH]]
            if not self._attempt(partial(self._client.log_batch, self.run_id, part)):
                self._spool.keep(now)  # all of it: sending a value twice at its step is no harm
                return
        if self._spool.waiting:
            self._spool.clear()

    def _end(self, status: Status) -> None:
        with _environment(SILENT):
            self._client.set_terminated(self.run_id, status)

    def _attempt(self, call: Callable[[], Any]) -> bool:
        try:
            call()
            return True
        except Exception as error:  # whatever the server does, training goes on
            self.lost += 1
            if self.lost == 1:
                reason = without_secret(f"{type(error).__name__}: {error}")[:300]
                log.warning("MLflow (%s) refused a call, training goes on without it: %s", self.uri, reason)
            return False


class NullTracker(Tracker):
    """Does nothing: tracking is switched off, or this is not rank 0."""

    def __init__(self) -> None:
        """No client, no run, no thread."""
        self.run_id = ""
        self.uri = ""
        self.lost = 0

    def ui_command(self) -> str:
        """Nothing to open."""
        return ""

    def metrics(self, step: int, values: Mapping[str, float], *, always: bool = False) -> None:
        """Nothing."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Nothing."""

    def tags(self, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def close(self, status: Status) -> None:
        """Nothing."""


class ModelRegistry:
    """MLflow's registry of models, for a run that MLflow has recorded."""

    def __init__(self, client: MlflowClient, uri: str, run_id: str) -> None:
        """Use `ModelRegistry.open`."""
        self._client, self._uri, self._run_id = client, without_secret(uri), run_id

    @classmethod
    def open(cls, config: TrackingConfig, output_dir: Path, run_id: str) -> ModelRegistry:
        """The registry of the store that holds the run `run_id`.  Raises `ConfigError` when there is none."""
        uri = _store(config, output_dir)
        if not run_id:
            raise ConfigError("--register: the checkpoint's run was not recorded in MLflow; leave --register out")
        try:
            with _environment({name: os.environ.get(name, value) for name, value in IMPATIENT.items()}):
                from mlflow import MlflowClient

                client = MlflowClient(tracking_uri=_absolute(uri))
                client.get_run(run_id)
        except Exception as error:  # MLflow, SQLAlchemy and requests share no base class
            raise ConfigError(
                f"--register: the run {run_id} is not to be had from {without_secret(uri)!r} "
                f"({type(error).__name__}: {without_secret(str(error))[:300]}); correct MLFLOW_TRACKING_URI"
            ) from None
        return cls(client, uri, run_id)

    def add(self, name: str, folder: Path) -> str:
        """Store `folder` with the run and make it the next version of the model `name`; what to call it.

        Raises `TrainingError` when the store refuses.
        """
        from mlflow.exceptions import MlflowException

        place = f"models/{_key(folder.name)}"
        try:
            self._client.log_artifacts(self._run_id, str(folder), place)
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            source = f"{self._client.get_run(self._run_id).info.artifact_uri}/{place}"
            version = self._client.create_model_version(name, source, self._run_id)
        except Exception as error:
            raise TrainingError(
                f"--register: MLflow ({self._uri}) refused the model ({without_secret(str(error))[:300]}); "
                f"{folder} itself is whole"
            ) from None
        return f"models:/{name}/{version.version}"


def _store(config: TrackingConfig, output_dir: Path) -> str:
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output_dir}/mlflow.db"


def _absolute(uri: str) -> str:
    """`uri` with a SQLite file's path made absolute; its folder is made."""
    if not uri.startswith("sqlite:///"):
        return uri
    file = Path(uri.removeprefix("sqlite:///")).absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{file}"


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the time of a call: MLflow takes some settings from nowhere else."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _open_run(client: MlflowClient, experiment: str, artifacts: str | None, name: str, run_id: str | None) -> Run:
    from mlflow.exceptions import MlflowException

    tags = {}
    if run_id:
        try:
            run = client.get_run(run_id)
            if run.info.lifecycle_stage == "active":
                client.update_run(run_id, status="RUNNING")
                return run
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        log.warning("the MLflow run %s of this training is gone from the store; a new run continues it", run_id)
        tags = {"continues_run": run_id}
    found = client.get_experiment_by_name(experiment)
    if found is None:
        try:
            client.create_experiment(experiment, artifact_location=artifacts)
        except MlflowException as error:  # another run of a sweep was faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(experiment)
        assert found is not None, experiment
    return client.create_run(found.experiment_id, tags=tags, run_name=name)


def _log_config(client: MlflowClient, run: Run, params: Mapping[str, Any]) -> None:
    """Log `params` flat and whole; for a continued run only what is new, and say what changed."""
    from mlflow.entities import Param

    known, now = run.data.params, dict(_flatten(params))
    fresh = [Param(key, value) for key, value in now.items() if key not in known]
    for start in range(0, len(fresh), MAX_PARAMS):
        client.log_batch(run.info.run_id, params=fresh[start : start + MAX_PARAMS])
    if not known:
        client.log_dict(run.info.run_id, dict(params), "config.json")
        return
    changed = [
        f"{key}: {known.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted({*known, *now})
        if known.get(key) != now.get(key)
    ]
    if changed:
        _set_tags(client, run.info.run_id, {"config_changed": "; ".join(changed)})
        stamp = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
        client.log_dict(run.info.run_id, dict(params), f"config_changed/{stamp}.json")


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of a nested configuration as (`a.b.0.c`, text); a list of plain values stays one value."""
    items: Iterator[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping) and value:
        items = iter(value.items())
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        items = iter(enumerate(value))
    if items is None:
        yield _key(prefix), str(value)[:MAX_VALUE]
        return
    for name, item in items:
        yield from _flatten(item, f"{prefix}.{name}" if prefix else str(name))


def _set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(_key(key), without_secret(value)[:MAX_TAG]) for key, value in tags.items()])


def _key(name: str) -> str:
    """`name` with only the characters that every MLflow store accepts."""
    return re.sub(r"[^A-Za-z0-9_\-. /]", "_", name)[:250] or "_"
