"""What training reports: one record a step, one record an evaluation, and the file that keeps them.

`metrics.jsonl` is strict JSON, one object a line, so that pandas, jq and a shell loop can read it while the
run goes on. A step line has `loss`, an evaluation line has `valid_loss`.
"""

from __future__ import annotations

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
_TAIL = 64 * 1024  # bytes that hold the last steps and the last evaluation's line of nearly every run


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        step: optimizer steps done, from 1.
        tokens: tokens trained on since the start of the run, all ranks together.
        phase: name of the phase the step belongs to.
        loss: mean over the step's valid tokens, in nats.
        grad_norm: global norm of the gradient before clipping.
        lr: learning rate the step was taken with.
        tokens_per_second: all ranks together.
        mfu: model FLOPs used over the device's peak, 0..1; None when the peak is unknown.
        gates: mean opening of each memory gate, 0..1; empty while memory is off.
        data_wait: part of the step spent waiting for data, 0..1.
        eta_seconds: time left until the end of the run.
        seconds: what the step took; it is not part of the line.
        trained_seconds: of all steps that count since the run's first start.
        goodput: `trained_seconds` over the time since then, 0..1; None where that is not known.
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
        """The line in `metrics.jsonl`; the time left is for people only and is not part of it."""
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
    """One evaluation on held-out data, in nats per token; `ablated_valid_loss` is with the memory ablated."""

    step: int
    tokens: int
    phase: str
    valid_loss: float
    ablated_valid_loss: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The line in `metrics.jsonl`; without `ablated_valid_loss` where it was not measured."""
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
    """The open `metrics.jsonl` of a run: every record is on its way to the disk when `write` returns."""

    def __init__(self, stream: TextIO, kept: frozenset[tuple[bool, int]]) -> None:
        """Use `MetricsFile.open`."""
        self._stream = stream
        self._kept = kept

    @classmethod
    def open(cls, path: Path, resume_step: int, confirm: Callable[[], None] = lambda: None) -> MetricsFile:
        """Open `path` to append, after taking out what a resume at `resume_step` will write again.

        Lines of later steps, a line torn by a kill, and anything that is no record are dropped; the rest is
        written aside and put in place at once, so that a second kill in the middle of this loses nothing. An
        earlier owner of the run that still has the file open writes into the one that was replaced.

        confirm: raises where the run has another owner by now; called before the file is put in place.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{glob.escape(path.name)}.tmp*"):  # an earlier owner's, which then cannot replace
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
        """Append one line. A record the file kept from before the resume is not written a second time."""
        line = record.to_json()
        if _key(line) not in self._kept:
            self._stream.write(_dump(line))
            self._stream.flush()

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        self._stream.close()

    def __enter__(self) -> MetricsFile:
        """The file itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The step lines and the evaluation lines of `path`, in file order; not-a-number comes back as None.

    A file still being written may end in half a line, which is left out; a missing file is an empty one.
    """
    steps: list[dict[str, Any]] = []
    evaluations: list[dict[str, Any]] = []
    for line in _complete_lines(path):
        (evaluations if "valid_loss" in line else steps).append(line)
    return steps, evaluations


def last_lines(path: Path) -> list[dict[str, Any]]:
    """The last of the lines that `read_metrics` gives, in file order, without reading a long file whole."""
    if not path.exists():
        return []
    with path.open("rb") as stream:
        start = max(0, stream.seek(0, os.SEEK_END) - _TAIL)
        stream.seek(start)
        raw = stream.read().split(b"\n")
    # what precedes the first newline may be half a line, as is what follows the last
    return list(_parsed(raw[1 if start else 0 : -1]))


def last_recorded_step(path: Path) -> int:
    """The highest step that `path` has a line of; -1 without any."""
    return max((line["step"] for line in last_lines(path)), default=-1)


def _key(line: dict[str, Any]) -> tuple[bool, int]:
    return "valid_loss" in line, line["step"]


def _complete_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open("rb") as stream:
        # The newline is written last: a line without one was torn, and half a number can look whole.
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
    """`value` with not-a-number and infinities as None: JSON has neither, and many readers stop at them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
