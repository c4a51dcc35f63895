"""Goodput: which part of the time since a run's first start went into steps that count."""

import math
import time
from dataclasses import replace
from pathlib import Path

from training.monitoring.records import StepRecord, last_lines
from training.tracking import facts


class Goodput:
    """Adds up the seconds of steps over all attempts of a run.

    A step counts when its update was made and no return to a checkpoint undid it: one that a later attempt takes again
    counts once. Evaluations, checkpoints, restarts and the time between attempts are not training.
    """

    def __init__(self, run_folder: Path) -> None:
        """Go on from the last step of `metrics.jsonl`, whose undone lines are gone."""
        self._trained, self._began = trained_seconds(run_folder / "metrics.jsonl") or 0.0, facts.first_start(run_folder)

    def counted(self, record: StepRecord) -> StepRecord:
        """`record` with the run's seconds of training and its goodput up to now."""
        if math.isfinite(record.loss) and math.isfinite(record.grad_norm):
            self._trained += record.seconds
        share = goodput(self._trained, self._began, time.time())
        return replace(record, trained_seconds=self._trained, goodput=share)


def trained_seconds(metrics: Path) -> float | None:
    """Seconds of the steps that count, up to the last line of `metrics.jsonl`; None where no line says it."""
    found = [line["trained_seconds"] for line in last_lines(metrics) if line.get("trained_seconds") is not None]
    return float(found[-1]) if found else None


def goodput(trained: float | None, began: float | None, until: float) -> float | None:
    """trained seconds over those from `began` to `until`, 0..1; None where either is unknown."""
    if trained is None or began is None or until <= began:
        return None
    return min(1.0, trained / (until - began))
