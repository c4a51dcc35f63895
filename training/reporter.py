"""Rank 0's records of a run: console, metrics file, plot and MLflow; on other ranks every call does nothing."""

import contextlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.errors import one_line
from data_prep.files import write_text
from training.checkpoint.run_state import ResumePoint
from training.config import RunConfig, dump_yaml
from training.monitoring.console import Console
from training.monitoring.goodput import Goodput
from training.monitoring.plots import plot_loss
from training.monitoring.records import EvalRecord, MetricsFile, StepRecord, read_metrics
from training.monitoring.run_lock import LostLockError, RunLock
from training.schedule import position
from training.tracking import Tracker, facts
from training.tracking.names import DISCARDED, PASSED_OVER, metrics_of

log = logging.getLogger("memtrain")
_DRAWING_SHARE = 0.01  # of the time: training waits while rank 0 draws


class Reporter:
    """Sends the trainer's records to console, files and MLflow.

    It is built on every rank; only rank 0 has a tracker, and without one every method returns at once.
    """

    def __init__(
        self, config: RunConfig, resume_step: int, tracker: Tracker | None, lock: RunLock | None = None
    ) -> None:
        self.active, self.folder, self._lock = tracker is not None, config.run.folder, lock
        if tracker is None:
            return
        self.confirm()
        self._tracker = tracker
        self._config, self._phase = config, ""
        self._metrics = MetricsFile.open(self.folder / "metrics.jsonl", resume_step, self.confirm)
        self._goodput = Goodput(self.folder)
        self._console = Console(config.total_steps, config.total_tokens)
        self._next_drawing = 0.0  # seconds of the monotonic clock

    def confirm(self) -> None:
        """Raise `LostLockError` when another process has taken the run over; call it before the run's files change."""
        if self._lock is not None:
            self._lock.confirm()

    def note(self, text: str) -> None:
        """Print a line on the console."""
        if self.active:
            self._console.note(text)

    def step(self, record: StepRecord) -> None:
        """Record one optimizer step."""
        if not self.active:
            return
        self.confirm()
        record = self._goodput.counted(record)
        self._metrics.write(record)
        self._console.step(record)
        self._tracker.metrics(record.step, metrics_of(record.to_json()))
        if record.phase != self._phase:
            self._phase = record.phase
            self._tracker.tags(_phase_tags(self._config, record.step - 1))

    def evaluation(self, record: EvalRecord) -> None:
        """Record one evaluation; draw the plot again, unless that was done a moment ago."""
        if not self.active:
            return
        self.confirm()
        self._metrics.write(record)
        self._console.evaluation(record)
        self._tracker.metrics(record.step, metrics_of(record.to_json()), always=True)
        if time.monotonic() >= self._next_drawing:
            self._plot()

    def rewind(self, step: int, spike: int, loss: float) -> None:
        """Remove the records of steps after `step`, to which the run went back because of a spike.

        MLflow gets the removed losses as another metric, and a tag.

        Args:
            step: step of the checkpoint to which the run went back.
            spike: step of the spike.
            loss: its loss, nats per token.
        """
        if not self.active:
            return
        self.confirm()
        self._metrics.close()
        undone = [line for line in read_metrics(self.folder / "metrics.jsonl")[0] if line["step"] > step]
        losses = {line["step"]: line["loss"] for line in undone if line["loss"] is not None}
        for at, value in sorted((losses | {spike: loss}).items()):
            self._tracker.metrics(at, {DISCARDED: value}, always=True)
        self._tracker.tags({f"rollback.step-{spike}": f"the loss spiked to {loss:.4g}; back to step {step}"})
        self._metrics = MetricsFile.open(self.folder / "metrics.jsonl", step, self.confirm)
        self._goodput = Goodput(self.folder)

    def passed_over(self, step: int) -> None:
        """Record that `step` is not taken, because it led to a spike."""
        self.note(f"step {step} is passed over: it led to a spike of the loss")
        if self.active:
            self._tracker.metrics(step, {PASSED_OVER: 1.0}, always=True)

    def _plot(self) -> None:
        """Draw loss.png; a failure to draw it is logged and does not end the run."""
        picture, began = self.folder / "loss.png", time.monotonic()
        try:
            plot_loss(self.folder / "metrics.jsonl", picture)
            self._tracker.artifact(picture)
        except Exception as error:  # a full disk, or anything that matplotlib and its libraries raise
            log.warning("%s cannot be drawn (%s: %s)", picture, type(error).__name__, one_line(error))
        ended = time.monotonic()
        self._next_drawing = ended + (ended - began) / _DRAWING_SHARE

    def close(self, end: facts.End, step: int) -> None:
        """Draw the plot, end the MLflow run with `end.status`, close the console.

        Args:
            end: how this attempt ended. A run that was saved to go on later has the status `KILLED`, because MLflow has
                no status for it.
            step: the last step done.
        """
        if not self.active:
            return
        if self._is_lost():  # another process owns the run and its MLflow run now
            self._console.close()
            return
        with _errors_logged(self.folder / "metrics.jsonl"):
            self._metrics.close()
        with _errors_logged(self.folder / facts.END_FILE):
            facts.write_end(self.folder, end, first=end.status == "FAILED")  # another rank may have written the reason
        self._tracker.tags({"state": end.state} | _phase_tags(self._config, step))
        try:
            self._plot()
            for path in facts.artifacts_of(self.folder):
                self._tracker.artifact(path)
        finally:
            self._tracker.close(end.status)
            self._console.close()

    def _is_lost(self) -> bool:
        with contextlib.suppress(LostLockError, OSError):
            self.confirm()
        return self._lock is not None and self._lock.lost

    @property
    def ui_command(self) -> str:
        """The command that opens the run in MLflow; empty without tracking."""
        return self._tracker.ui_command() if self.active else ""


@contextmanager
def _errors_logged(path: Path) -> Iterator[None]:
    """Log an `OSError` instead of raising it, so that it does not replace the reason why the run ends."""
    try:
        yield
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error)


def start_tracker(config: RunConfig, world_size: int, lock: RunLock) -> tuple[Tracker, dict[str, Any]]:
    """Open a new MLflow run, or the one that the run's folder names; return the tracker and this start's description.

    Raises `ConfigError` when a new run's store cannot be opened; nothing was written into the run's folder then.
    """
    folder = config.run.folder
    # found again, because another process may have trained the run until this one got its lock
    start = facts.this_start(ResumePoint.of(folder).step, world_size)
    tags = facts.place_tags(world_size) | facts.start_tags([*facts.read_starts(folder), start])
    tracker = Tracker.start(
        config.tracking,
        output_dir=config.run.output_dir,
        run_name=config.run.name,
        run_id=facts.read_run_id(folder) or None,
        params=config.model_dump(mode="json"),
        tags=tags | _phase_tags(config, start["after_step"]) | {"state": "training"},
        confirm=lock.confirm,
    )
    return tracker, start


def open_folder(config: RunConfig, tracker: Tracker, start: dict[str, Any]) -> None:
    """Write the run's folder: resolved configuration, installed packages, the list of starts, the MLflow run's id."""
    folder = config.run.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", dump_yaml(config, without_password=True))
    write_text(folder / facts.ENVIRONMENT_FILE, facts.environment_text())
    facts.add_start(folder, start)
    if tracker.run_id:
        write_text(folder / facts.RUN_ID_FILE, tracker.run_id + "\n")
    for path in facts.artifacts_of(folder, at_start=True):
        tracker.artifact(path)


def _phase_tags(config: RunConfig, step: int) -> dict[str, str]:
    """Return the MLflow tags that describe the phases after `step` steps."""
    over = step >= config.total_steps
    at = position(config.phases, config.data.sequence_length, min(step, config.total_steps - 1))
    return facts.phase_tags(config.phases, at.phase_index, over)
