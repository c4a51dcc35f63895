"""What training calls: rank 0's tracker.  Its methods write a line to the outbox and return; a thread sends."""

from __future__ import annotations

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

BATCH_SECONDS = 1.0  # entries are collected this long, then sent in few calls
LONGEST_PAUSE = 15.0  # seconds between two attempts at a store that is away
# How long the end of a run waits for a slow store. Whoever stops a run kills it soon: 30 s is usual.
CLOSE_SECONDS: dict[Status, float] = {"FINISHED": 60.0, "FAILED": 15.0, "KILLED": 10.0}


class Tracker:
    """An open MLflow run. Every method but `start` and `close` returns at once, and none of them raises."""

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
        """Use `Tracker.start`."""
        self.run_id, self.uri = delivery.run_id, delivery.store.uri
        self._delivery, self._opening, self._opened = delivery, opening, opened
        self._every = config.log_every_steps
        self._outbox = Outbox(delivery.folder / OUTBOX_FILE, confirm)
        self._outbox.without("status")  # an earlier life's end
        self._left_behind = len(self._outbox)
        if not opened:
            self.tags(opening.tags)  # in case that this life never gets to open it
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
    ) -> Tracker:
        """Open a new run, or continue `run_id`; with `enabled: false` a tracker that does nothing.

        A new run needs its store. A run that goes on does not, whether the store is away or refuses it (a deleted
        experiment): what it has to say waits in its folder until the store takes it.

        Args:
            config: the `tracking` section.
            output_dir: folder of all runs: the default database and, without a server, `mlartifacts`.
            run_name: shown in MLflow's list, and the run's folder below `output_dir`.
            run_id: the run to continue. One that the store lost becomes a new run, said aloud.
            params: the whole resolved configuration, nested.
            tags: set again at every start.
            confirm: raises `LostLockError` where the run's folder has another owner by now.

        Raises:
            ConfigError: a new run's store cannot be opened.
        """
        if not config.enabled:
            return NullTracker()
        uri = config.address(output_dir)
        # A server chooses for itself; a database would choose the current directory.
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
            what = "refuses this run" if isinstance(error, RefusedError) else "is away"
            log.warning("MLflow (%s) %s, training goes on, what it records waits: %s", delivery.store.uri, what, error)
            opened = False
        return cls(delivery, opening, config, opened, confirm)

    def ui_command(self) -> str:
        """The shell command that opens this store's page, or the address of a server; never a password."""
        if self.uri.startswith(("http://", "https://")):
            return self.uri
        return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)} --port 5000"

    def metrics(self, step: int, values: Mapping[str, float], *, always: bool = False) -> None:
        """Record `values` at `step`; `always` (evaluations) also between two `log_every_steps`.

        A metric's steps that the store has already, from before a resume, are left out, so every step is there once.
        A value that is not finite is left out too, and its first time becomes a tag: MLflow makes infinity 1.8e308.
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
        """Store the file at `path` with the run. It is read a moment later: leave it there."""
        self._outbox.put({"artifact": os.path.relpath(path, self._delivery.folder), "folder": folder})

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._outbox.put({"tags": {name: without_secret(value) for name, value in tags.items()}})

    def close(self, status: Status) -> None:
        """Send what is left and end the run; what a store does not take in `CLOSE_SECONDS` stays in the outbox."""
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
                "MLflow (%s) does not have all of this run; %s keeps %d entries, which the next start sends, or: "
                "python launchers/mlflow_sync.py %s",
                *(self.uri, self._outbox.path, waiting, shlex.quote(str(self._delivery.folder))),
            )
        elif refused:
            log.warning("MLflow (%s) refused %d calls of this run; metrics.jsonl has all", self.uri, refused)
        if not self._thread.is_alive():
            self._outbox.close()
            self._settings.close()

    def _system(self, values: dict[str, float]) -> bool:
        """Record a sample of the machine at the present step, once there is one."""
        if not self._step:
            return False
        self._outbox.put({"step": self._step, "time": now_ms(), "metrics": values})
        return True

    def _send_all(self) -> None:
        """The thread: until `close`, take what waits, send it; when the store is away, try less and less often."""
        pause, away = 0.0, not self._opened  # which `start` has said
        while True:
            last = self._closing.wait(pause)
            if not last:
                self._outbox.wait(BATCH_SECONDS)
                last = self._closing.wait(BATCH_SECONDS)
            try:
                self._send()
                if away:
                    log.warning("MLflow (%s) is back; it has all that waited", self.uri)
                pause, away = 0.0, False
            except (AwayError, RefusedError) as error:  # refused: its run is gone, and the next start makes another
                if not away:
                    log.warning("MLflow (%s) is away, training goes on, what it records waits: %s", self.uri, error)
                pause, away = min(LONGEST_PAUSE, 2 * pause + 1), True
            if last:
                return

    def _send(self) -> None:
        """First what earlier lives left behind, then what there is."""
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
    """Does nothing: tracking is switched off, or this is not rank 0."""

    def __init__(self) -> None:
        """No store, no run, no thread."""
        self.run_id = ""
        self.uri = ""

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
