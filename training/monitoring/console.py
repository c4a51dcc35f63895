"""What rank 0 shows while training: one aligned line a step, and on a terminal a progress bar below them.

The same fields make both outputs. In a log file there is nothing but text and newlines; on a terminal the
lines scroll above the bar, and a narrow window wraps them softly and never cuts them.
"""

from __future__ import annotations

import errno
import io
import logging
import math
import os
import sys
from collections.abc import Callable
from typing import TextIO

import rich.console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from training.logs import send_nowhere_what_nobody_reads
from training.monitoring.records import EvalRecord, StepRecord

log = logging.getLogger("memtrain")

Field = tuple[str, str, str]  # name before the value ("" for none), value, unit after it


class _Terminal(rich.console.Console):
    """A console of rich's that leaves what to do without a reader to its user; rich's own ends the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


class Console:
    """Prints records; `close` it in a `finally`, or the terminal keeps a hidden cursor."""

    def __init__(self, total_steps: int, total_tokens: int, stream: TextIO | None = None) -> None:
        """`stream` defaults to standard output; on a terminal that can do it the output is live."""
        self._total_steps = total_steps
        self._total_tokens = total_tokens
        self._stream: TextIO = stream or sys.stdout or io.StringIO()
        self._lost = stream is None and sys.stdout is None  # its file was closed before Python began
        # A column never shrinks, so lines align from the first time a wide value was seen.
        self._widths = {"step": max(5, len(str(total_steps))), "tokens": len(f"{total_tokens:,}"), "speed": 6}
        self._rich: rich.console.Console | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        if self._stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb"):
            self._rich = _Terminal(file=self._stream, highlight=False, soft_wrap=True)

    def step(self, record: StepRecord) -> None:
        """Print the line of one step."""
        fields = self._position("step", record)
        fields += [
            ("loss", self._pad("loss", _fixed(record.loss, 6, 4)), ""),
            ("grad norm", self._pad("grad norm", _fixed(record.grad_norm, 4, 2)), ""),
            ("lr", f"{record.lr:.1e}", ""),
            ("", self._pad("speed", f"{record.tokens_per_second:,.0f}"), "tok/s"),
            ("mfu", self._pad("mfu", "-" if record.mfu is None else f"{record.mfu:.1%}"), ""),
        ]
        if record.gates:
            gates = " ".join(f"{name} {_fixed(value, 4, 2)}" for name, value in record.gates.items())
            fields.append(("gates", self._pad("gates", gates), ""))
        fields += [
            ("data", self._pad("data", f"{record.data_wait:.1%}"), ""),
            ("left", _duration(record.eta_seconds), ""),
        ]
        self._line(fields, "bold")
        self._advance(record)

    def evaluation(self, record: EvalRecord) -> None:
        """Print the line of one evaluation, with what ablating the memory cost where that was measured."""
        fields = self._position("eval", record)
        fields.append(("valid loss", _fixed(record.valid_loss, 6, 4), ""))
        if record.ablated_valid_loss is not None:
            difference = record.ablated_valid_loss - record.valid_loss
            fields.append(("memory ablated", f"{_fixed(record.ablated_valid_loss, 6, 4)} ({difference:+.4f})", ""))
        self._line(fields, "bold green")

    def note(self, text: str) -> None:
        """Print a sentence between the lines: a phase begins, a checkpoint was written."""
        text = self._printable(text)
        self._write(text, Text(text))

    def close(self) -> None:
        """Take the bar away and give the terminal back; calling it again does nothing."""
        progress, self._progress = self._progress, None
        if progress is not None:
            self._survive(progress.stop)
        self._survive(self._stream.flush)

    def _position(self, kind: str, record: StepRecord | EvalRecord) -> list[Field]:
        phase = self._pad("phase", self._printable(record.phase), left=True)
        step = f"{record.step:>{self._widths['step']}}/{self._total_steps}"
        return [("", phase, ""), (kind, step, ""), ("tokens", self._pad("tokens", f"{record.tokens:,}"), "")]

    def _pad(self, column: str, text: str, left: bool = False) -> str:
        width = self._widths[column] = max(self._widths.get(column, 0), len(text))
        return text.ljust(width) if left else text.rjust(width)

    def _line(self, fields: list[Field], style: str) -> None:
        styled = Text()
        for number, (name, value, unit) in enumerate(fields):
            styled.append("  " if number else "")
            styled.append(f"{name} " if name else "", "dim")
            styled.append(value, "cyan" if number == 0 else style if "loss" in name else "")
            styled.append(f" {unit}" if unit else "", "dim")
        self._write(styled.plain, styled)

    def _write(self, plain: str, styled: Text) -> None:
        def write() -> None:
            if self._rich is None:
                self._stream.write(plain + "\n")
                self._stream.flush()
            else:
                self._rich.print(styled, soft_wrap=True)

        self._survive(write)

    def _printable(self, text: str) -> str:
        """`text` with escapes for the characters that the console's encoding lacks."""
        encoding = self._stream.encoding or "utf-8"
        return text.encode(encoding, "backslashreplace").decode(encoding)

    def _survive(self, write: Callable[[], object]) -> None:
        """Write to the console, or leave it: metrics.jsonl has every line, and a run ends for want of no console."""
        if self._lost:
            return
        try:
            write()
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            if isinstance(error, OSError) and error.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
                return  # the disk under a redirected output is full, and may have space again
            self._lost, self._rich, self._progress = True, None, None
            discard(self._stream)
            send_nowhere_what_nobody_reads()  # standard error, of a terminal that was closed
            log.warning("the console takes no more lines (%s); the run goes on, metrics.jsonl has them", error)

    def _advance(self, record: StepRecord) -> None:
        if self._rich is None:
            return
        if self._progress is None or self._task is None:
            # Drawn by the steps alone: a refresh thread would take time from the step and not survive a fork.
            self._progress = Progress(*_columns(), console=self._rich, auto_refresh=False)
            self._task = self._progress.add_task("", total=self._total_steps, phase="", tokens="", left="")
            self._survive(self._progress.start)
        tokens = f"{_short(record.tokens)}/{_short(self._total_tokens)} tokens"
        left, phase = f"{_duration(record.eta_seconds)} left", self._printable(record.phase)
        if (progress := self._progress) is not None:
            progress.update(self._task, completed=record.step, phase=phase, tokens=tokens, left=left)
            self._survive(progress.refresh)


def discard(stream: TextIO) -> None:
    """Let a stream whose reader has gone write to nowhere, or Python fails on it once more when it ends."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # no file of the system, or closed
        return


def _columns() -> list[TextColumn | BarColumn]:
    return [
        TextColumn("[cyan]{task.fields[phase]}", markup=True),
        BarColumn(bar_width=None),
        TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
        TextColumn("{task.fields[tokens]}", style="dim"),
        TextColumn("{task.fields[left]}"),
    ]


def _fixed(value: float, width: int, decimals: int) -> str:
    """`value` with as many of `decimals` as fit into `width` characters: 10.987 stands under 9.8765."""
    text = f"{value:.{decimals}f}"
    while len(text) > width and decimals > 0:
        decimals -= 1
        text = f"{value:.{decimals}f}"
    return text.rjust(width)


def _short(count: int) -> str:
    """A count for people: 983040 is 983K."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= limit:
            return f"{count / limit:.3g}{unit}"
    return str(count)


def _duration(seconds: float) -> str:
    """3:21, 1:02:03 or 2d 3:04:05; "-" while unknown."""
    if not math.isfinite(seconds) or seconds < 0:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
