"""Rank 0's side of a run: console, metrics file, plot and MLflow; the other ranks do nothing here."""

import os
import platform

from data_prep.files import write_text
from training.config import RunConfig, dump_yaml
from training.console import Console
from training.plots import plot_loss
from training.records import EvalRecord, MetricsFile, StepRecord
from training.tracking import Status, Tracker

RUN_ID_FILE = "mlflow_run_id"


class Reporter:
    """Where records go.  Built on every rank; only rank 0 has a tracker and is active."""

    def __init__(self, config: RunConfig, resume_step: int, tracker: Tracker | None) -> None:
        self.active, self.folder = tracker is not None, config.run.folder
        if tracker is None:
            return
        self._tracker = tracker
        self._metrics = MetricsFile.open(self.folder / "metrics.jsonl", resume_step)
        tracker.artifact(self.folder / "config.yaml")
        self._console = Console(config.total_steps, config.total_tokens)

    def note(self, text: str) -> None:
        """A line on the console."""
        if self.active:
            self._console.note(text)

    def step(self, record: StepRecord) -> None:
        """One optimizer step."""
        if not self.active:
            return
        self._metrics.write(record)
        self._console.step(record)
        self._tracker.metrics(
            record.step,
            {
                "train/loss": record.loss,
                "train/tokens": float(record.tokens),
                "optim/grad_norm": record.grad_norm,
                "optim/lr": record.lr,
                "throughput/tokens_per_second": record.tokens_per_second,
                "data/wait": record.data_wait,
                **({} if record.mfu is None else {"throughput/mfu": record.mfu}),
                **{f"memory/gate_{name}": value for name, value in record.gates.items()},
            },
        )

    def evaluation(self, record: EvalRecord) -> None:
        """One evaluation."""
        if not self.active:
            return
        self._metrics.write(record)
        self._console.evaluation(record)
        values = {"eval/valid_loss": record.valid_loss, "eval/tokens": float(record.tokens)}
        if record.wiped_valid_loss is not None:
            values["eval/wiped_valid_loss"] = record.wiped_valid_loss
        self._tracker.metrics(record.step, values, always=True)
        self._plot()

    def rewind(self, step: int) -> None:
        """The run went back to `step`: what was recorded after it will be recorded again."""
        if self.active:
            self._metrics.close()
            self._metrics = MetricsFile.open(self.folder / "metrics.jsonl", step)

    def _plot(self) -> None:
        plot_loss(self.folder / "metrics.jsonl", self.folder / "loss.png")
        self._tracker.artifact(self.folder / "loss.png")

    def close(self, status: Status) -> None:
        """Draw the curve, end the MLflow run with `status`, give the terminal back."""
        if not self.active:
            return
        self._metrics.close()
        try:
            self._plot()
            self._tracker.artifact(self.folder / "metrics.jsonl")
        finally:
            self._tracker.close(status)
            self._console.close()

    @property
    def ui_command(self) -> str:
        return self._tracker.ui_command() if self.active else ""


def start_tracker(config: RunConfig) -> Tracker:
    """Open the run in MLflow, or the one this folder has already; raises `ConfigError`, having written nothing here."""
    stored = config.run.folder / RUN_ID_FILE
    run_id = stored.read_text(encoding="utf-8").strip() if stored.exists() else None
    return Tracker.start(
        config.tracking,
        output_dir=config.run.output_dir,
        run_name=config.run.name,
        run_id=run_id or None,
        params=config.model_dump(mode="json"),
        tags={"host": platform.node(), "world_size": os.environ.get("WORLD_SIZE", "1")},
    )


def open_folder(config: RunConfig, tracker: Tracker) -> None:
    """The run's folder with `config.yaml`, the resolved configuration of the last start, and the MLflow run's id."""
    folder = config.run.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", dump_yaml(config, without_password=True))
    if tracker.run_id:
        write_text(folder / RUN_ID_FILE, tracker.run_id + "\n")
