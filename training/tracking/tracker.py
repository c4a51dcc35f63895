"""Rank 0's tracker, which training calls. Its methods append an entry to the outbox and return; a thread sends it."""

import contextlib
import logging
import math
import os
import shlex
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from training.config.tracking import TrackingConfig
from training.errors import ConfigError
from training.logs import without_secret
from training.monitoring.records import last_recorded_step
from training.tracking.delivery import METRICS_FILE, Delivery, Opening
from training.tracking.outbox import OUTBOX_FILE, Outbox
from training.tracking.store import (
    IMPATIENT,
    PATIENT,
    SILENT,
    AwayError,
    RefusedError,
    Status,
    Store,
    environment,
    now_ms,
)
from training.tracking.system import SystemSampler

log = logging.getLogger("memtrain.tracking")

BATCH_SECONDS = 1.0  # entries are collected for so long and then sent in few calls
LONGEST_PAUSE = 15.0  # seconds between two attempts to reach a store that does not answer
# Seconds that the end of a run waits for a slow store; a stopped process is often killed after 30 s.
CLOSE_SECONDS: dict[Status, float] = {"FINISHED": 60.0, "FAILED": 15.0, "KILLED": 10.0}


class Tracker:
    """An open MLflow run. All methods except `start` and `close` return at once and never raise."""

    run_id: str
    uri: str  # without a password

    def __init__(
        self,
        delivery: Delivery,
        opening: Opening,
        config: TrackingConfig,
        opened: bool,
        confirm: Callable[[], None],
    ) -> None:
        """Start the threads of an opened run; call `Tracker.start` instead."""
        self.run_id, self.uri = delivery.run_id, delivery.store.uri
        self._delivery, self._opening, self._opened = delivery, opening, opened
        self._every = config.log_every_steps
        self._outbox = Outbox(delivery.folder / OUTBOX_FILE, confirm)
        self._outbox.without("status")  # the end of an earlier attempt
        self._left_behind = len(self._outbox)
        if not opened:
            self.tags(opening.tags)  # kept in the outbox in case this attempt never reaches the store
        self._recorded = last_recorded_step(delivery.folder / METRICS_FILE)
        self._nonfinite: set[str] = set()
        self._step = 0
        self._closing = threading.Event()
        self._settings = contextlib.ExitStack()
        self._settings.enter_context(environment(PATIENT, keep=True))
        self._settings.enter_context(environment(SILENT))
        self._thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)
        self._thread.start()
        self._sampler = SystemSampler(config.system_seconds, self._system) if config.system_seconds else None

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
        confirm: Callable[[], None] = lambda: None,
    ) -> "Tracker":
        """Open a new MLflow run, or continue `run_id`; with `enabled: false` return a tracker that does nothing.

        A new run needs its store. A continued run does not: when the store cannot be reached or refuses the run (a
        deleted experiment), the records wait in the run's folder until the store takes them.

        Args:
            config: the `tracking` section.
            output_dir: folder of all runs, where the default database and, without a server, `mlartifacts` are.
            run_name: name in MLflow's list, and of the run's folder below `output_dir`.
            run_id: the run to continue; one that the store lacks becomes a new run, with a warning.
            params: the whole resolved configuration, nested.
            tags: set at every start.
            confirm: raises `LostLockError` when the run's folder has another owner by now.

        Raises:
            ConfigError: a new run's store cannot be opened.
        """
        if not config.enabled:
            return NullTracker()
        uri = config.address(output_dir)
        # A server decides where artifacts go; MLflow with a database would use the current directory.
        remote = uri.startswith(("http://", "https://"))
        artifacts = None if remote else (output_dir.resolve() / "mlartifacts").as_uri()
        opening = Opening(config.experiment, artifacts, run_name, run_id, params, tags)
        opened, delivery = True, Delivery(Store(uri), output_dir / run_name, run_id or "")
        try:
            with environment(IMPATIENT, keep=True):
                delivery.open(opening)
        except (AwayError, RefusedError) as error:
            if not run_id:
                raise ConfigError(
                    f"tracking.uri: cannot record the run in {without_secret(uri)!r} ({error}). "
                    "Correct the address or start the server, or train without MLflow (tracking.enabled=false) and "
                    "send the run afterwards with launchers/mlflow_sync.py"
                ) from None
            what = "refuses this run" if isinstance(error, RefusedError) else "cannot be reached"
            log.warning("MLflow (%s) %s; training goes on and keeps its records: %s", delivery.store.uri, what, error)
            opened = False
        return cls(delivery, opening, config, opened, confirm)

    def ui_command(self) -> str:
        """Return the shell command that opens this store's page, or a server's address, without a password."""
        if self.uri.startswith(("http://", "https://")):
            return self.uri
        return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)} --port 5000"

    def metrics(self, step: int, values: Mapping[str, float], *, always: bool = False) -> None:
        """Record `values` at `step`.

        Steps of a metric that the store has from before a resume are not sent again. A value that is not finite is left
        out, because MLflow would store 1.8e308; the first one of each metric becomes a tag.

        always: record even when `step` is not a multiple of `log_every_steps`.
        """
        self._step = max(step, self._step)
        if step % self._every and not always:
            return
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        for name in values.keys() - finite.keys() - self._nonfinite:
            self._nonfinite.add(name)
            self.tags({f"not_finite.{name}": f"{values[name]} first at step {step}"})
        if finite:
            self._outbox.put({"step": step, "time": now_ms(), "metrics": finite})

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Upload the file at `path` to the run. It is read later, by the thread, so it must stay there."""
        self._outbox.put({"artifact": os.path.relpath(path, self._delivery.folder), "folder": folder})

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._outbox.put({"tags": {name: without_secret(value) for name, value in tags.items()}})

    def close(self, status: Status) -> None:
        """Send the remaining entries and end the run; what is not sent within `CLOSE_SECONDS` stays in the outbox."""
        if self._closing.is_set():
            return
        if self._sampler:
            self._sampler.close()
        self._outbox.put({"status": status, "time": now_ms()})
        self._closing.set()
        self._thread.join(CLOSE_SECONDS[status])
        waiting, refused = len(self._outbox), self._delivery.refused
        if waiting:
            log.warning(
                "MLflow (%s) does not have all of this run; %s keeps %d entries: the next start sends them, or "
                "python launchers/mlflow_sync.py %s",
                *(self.uri, self._outbox.path, waiting, shlex.quote(str(self._delivery.folder))),
            )
        elif refused:
            log.warning("MLflow (%s) refused %d calls of this run; metrics.jsonl has all values", self.uri, refused)
        if not self._thread.is_alive():
            self._outbox.close()
            self._settings.close()

    def _system(self, values: dict[str, float]) -> bool:
        """Record a sample of the machine at the present step; return False before the first step."""
        if not self._step:
            return False
        self._outbox.put({"step": self._step, "time": now_ms(), "metrics": values})
        return True

    def _send_all(self) -> None:
        """Send entries until `close`; while the store cannot be reached, try again at growing intervals.

        This is the body of the thread.
        """
        pause, away = 0.0, not self._opened  # `start` has warned about it already
        while True:
            last = self._closing.wait(pause)
            if not last:
                self._outbox.wait(BATCH_SECONDS)
                last = self._closing.wait(BATCH_SECONDS)
            try:
                self._send()
                if away:
                    log.warning("MLflow (%s) is back and has all records that were kept", self.uri)
                pause, away = 0.0, False
            except (AwayError, RefusedError) as error:  # refused: the run was deleted; the next start creates another
                if not away:
                    log.warning(
                        "MLflow (%s) cannot be reached; training goes on and keeps its records: %s", self.uri, error
                    )
                pause, away = min(LONGEST_PAUSE, 2 * pause + 1), True
            if last:
                return

    def _send(self) -> None:
        """Send what earlier attempts left unsent, then the present entries."""
        if not self._opened:
            self._delivery.open(self._opening, create=False)
            self._opened = True
        if self._left_behind >= 0:
            self._deliver(self._left_behind)
            self._delivery.catch_up(self._recorded, self._every)
            self._left_behind = -1
        self._deliver(len(self._outbox))

    def _deliver(self, count: int) -> None:
        if count:
            self._delivery.deliver(self._outbox.peek()[:count])
            self._outbox.done(count)


class NullTracker(Tracker):
    """A tracker that does nothing, for a run with `tracking.enabled: false`."""

    def __init__(self) -> None:
        """Open no store and start no thread."""
        self.run_id = ""
        self.uri = ""

    def ui_command(self) -> str:
        """Return an empty text."""
        return ""

    def metrics(self, step: int, values: Mapping[str, float], *, always: bool = False) -> None:
        """Do nothing."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Do nothing."""

    def tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing."""

    def close(self, status: Status) -> None:
        """Do nothing."""
