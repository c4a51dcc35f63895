"""Records of training: one for each step, one for each evaluation, and the file `metrics.jsonl` that keeps them.

The file is strict JSON, one object a line, so that pandas, jq and a shell loop can read it while the run goes on. A
step line has `loss`, an evaluation line has `valid_loss`.
"""

import glob
import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from data_prep.files import sync

_FORMER_NAMES = {"wiped_valid_loss": "ablated_valid_loss"}  # keys that earlier versions wrote, and today's
_TAIL = 64 * 1024  # bytes of the file's end; in nearly every run they hold the last steps and the last evaluation


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        step: number of the step, from 1.
        tokens: tokens trained on since the start of the run, all ranks together.
        phase: name of the phase that the step belongs to.
        loss: mean over the step's valid tokens, in nats.
        grad_norm: global norm of the gradient before clipping.
        lr: learning rate of the step.
        tokens_per_second: of all ranks together.
        mfu: FLOP/s of the model over the devices' peak, 0..1; None when the peak is unknown.
        gates: mean opening of each memory gate, 0..1; empty while memory is off.
        data_wait: fraction of the step's time spent waiting for data, 0..1.
        eta_seconds: estimated seconds until the end of the run; not part of the line in the file.
        seconds: duration of the step; not part of the line in the file.
        trained_seconds: seconds of all steps that count (see `Goodput`) since the run's first start.
        goodput: `trained_seconds` over the time since the first start, 0..1; None when that time is unknown.
    """

    step: int
    tokens: int
    phase: str
    loss: float
    grad_norm: float
    lr: float
    tokens_per_second: float
    mfu: float | None = None
    gates: dict[str, float] = field(default_factory=dict)
    data_wait: float = 0.0
    eta_seconds: float = math.nan
    seconds: float = 0.0
    trained_seconds: float | None = None
    goodput: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as a line of `metrics.jsonl`."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "phase": self.phase,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "lr": self.lr,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            "gates": self.gates,
            "data_wait": self.data_wait,
            "trained_seconds": self.trained_seconds,
            "goodput": self.goodput,
        }


@dataclass(frozen=True)
class EvalRecord:
    """One evaluation on held-out data.

    valid_loss, ablated_valid_loss: nats per token, the second with the memory ablated; None when it was not measured.
    """

    step: int
    tokens: int
    phase: str
    valid_loss: float
    ablated_valid_loss: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as a line of `metrics.jsonl`, without what was not measured."""
        line: dict[str, Any] = {
            "step": self.step,
            "tokens": self.tokens,
            "phase": self.phase,
            "valid_loss": self.valid_loss,
        }
        if self.ablated_valid_loss is not None:
            line["ablated_valid_loss"] = self.ablated_valid_loss
        return line


class MetricsFile:
    """The open `metrics.jsonl` of a run; a record has been handed to the operating system when `write` returns."""

    def __init__(self, stream: TextIO, kept: frozenset[tuple[bool, int]]) -> None:
        """Wrap an open file; call `MetricsFile.open` instead."""
        self._stream = stream
        self._kept = kept

    @classmethod
    def open(cls, path: Path, resume_step: int, confirm: Callable[[], None] = lambda: None) -> "MetricsFile":
        """Open `path` to append, after removing the lines that a resume at `resume_step` will write again.

        Lines of later steps, a line torn by a kill, and lines that are not records are dropped. The rest is written to
        another file, which replaces `path` at once, so that a kill in between loses nothing. An earlier owner of the
        run that still has the file open writes into the replaced one.

        confirm: raises when another process owns the run by now; called before the file is replaced.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        # files of an earlier owner of the run, which then cannot replace `path` any more
        for left in path.parent.glob(f"{glob.escape(path.name)}.tmp*"):
            left.unlink(missing_ok=True)
        aside = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex}")
        kept: set[tuple[bool, int]] = set()
        with aside.open("w", encoding="utf-8") as stream:
            for line in _complete_lines(path):
                key = _key(line)
                if line["step"] <= resume_step and key not in kept:
                    kept.add(key)
                    stream.write(_dump(line))
            stream.flush()
            os.fsync(stream.fileno())
        confirm()
        aside.replace(path)
        sync(path.parent)
        return cls(path.open("a", encoding="utf-8"), frozenset(kept))

    def write(self, record: StepRecord | EvalRecord) -> None:
        """Append one line, unless the file has kept this record from before the resume."""
        line = record.to_json()
        if _key(line) not in self._kept:
            self._stream.write(_dump(line))
            self._stream.flush()

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        self._stream.close()

    def __enter__(self) -> "MetricsFile":
        """Return the file itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the step lines and the evaluation lines of `path`, in file order; values that are not finite are None.

    An incomplete last line of a file that is being written is left out. A missing file gives empty lists.
    """
    steps: list[dict[str, Any]] = []
    evaluations: list[dict[str, Any]] = []
    for line in _complete_lines(path):
        (evaluations if "valid_loss" in line else steps).append(line)
    return steps, evaluations


def last_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines in the last 64 KiB of `path`, steps and evaluations in file order."""
    if not path.exists():
        return []
    with path.open("rb") as stream:
        start = max(0, stream.seek(0, os.SEEK_END) - _TAIL)
        stream.seek(start)
        raw = stream.read().split(b"\n")
    # the text before the first newline may be part of a line, and the text after the last newline is
    return list(_parsed(raw[1 if start else 0 : -1]))


def last_recorded_step(path: Path) -> int:
    """Return the highest step that has a line in `path`; -1 when there are no lines."""
    return max((line["step"] for line in last_lines(path)), default=-1)


def _key(line: dict[str, Any]) -> tuple[bool, int]:
    return "valid_loss" in line, line["step"]


def _complete_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open("rb") as stream:
        # A line without its newline was torn by a kill, and a part of a number can look like a number.
        yield from _parsed(raw for raw in stream if raw.endswith(b"\n"))


def _parsed(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for raw in lines:
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict) and type(line.get("step")) is int and ("loss" in line or "valid_loss" in line):
            for former, name in _FORMER_NAMES.items():
                if former in line:
                    line[name] = line.pop(former)
            yield line


def _dump(line: dict[str, Any]) -> str:
    return json.dumps(_finite(line), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Return `value` with NaN and infinities replaced by None, because JSON has neither."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
