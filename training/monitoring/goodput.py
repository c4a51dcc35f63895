"""Goodput: the fraction of the time since a run's first start that was spent in steps that count."""

import math
import time
from dataclasses import replace
from pathlib import Path

from training.monitoring.records import StepRecord, last_lines
from training.tracking import facts


class Goodput:
    """Adds up the seconds of the steps that count, over all attempts of a run.

    A step counts when its update was made and no return to a checkpoint undid it; a step that a later attempt takes
    again counts once. Evaluations, checkpoints, restarts and the time between attempts do not count.
    """

    def __init__(self, run_folder: Path) -> None:
        """Continue the sum of the last line of `metrics.jsonl`; lines of undone steps must be removed before."""
        self._trained, self._began = trained_seconds(run_folder / "metrics.jsonl") or 0.0, facts.first_start(run_folder)

    def counted(self, record: StepRecord) -> StepRecord:
        """Return `record` with the seconds of all steps that count, this one included, and the goodput up to now."""
        if math.isfinite(record.loss) and math.isfinite(record.grad_norm):
            self._trained += record.seconds
        share = goodput(self._trained, self._began, time.time())
        return replace(record, trained_seconds=self._trained, goodput=share)


def trained_seconds(metrics: Path) -> float | None:
    """Return the seconds of the steps that count, from the last line of `metrics.jsonl`; None without such a line."""
    found = [line["trained_seconds"] for line in last_lines(metrics) if line.get("trained_seconds") is not None]
    return float(found[-1]) if found else None


def goodput(trained: float | None, began: float | None, until: float) -> float | None:
    """Return `trained` seconds over the time from `began` to `until` (seconds since the epoch), 0..1.

    None when `trained` or `began` is unknown.
    """
    if trained is None or began is None or until <= began:
        return None
    return min(1.0, trained / (until - began))
