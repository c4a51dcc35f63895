"""Rank 0's output while training: one aligned line for each step, and on a terminal a progress bar below them.

A log file gets plain text. On a terminal the lines scroll above the bar; a narrow window wraps them.
"""

import errno
import io
import logging
import os
import sys
from collections.abc import Callable
from typing import TextIO

import rich.console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from training.logs import discard_unread_output
from training.monitoring.records import EvalRecord, StepRecord
from training.monitoring.units import clock, short

log = logging.getLogger("memtrain")

Field = tuple[str, str, str]  # name before the value ("" for none), value, unit after it


class _Terminal(rich.console.Console):
    """A rich console that raises when its reader is gone, where rich itself would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


class Console:
    """Prints records. Call `close` in a `finally`, because the progress bar hides the terminal's cursor."""

    def __init__(self, total_steps: int, total_tokens: int, stream: TextIO | None = None) -> None:
        """Print to `stream` (default: standard output), with a progress bar where it is a capable terminal."""
        self._total_steps = total_steps
        self._total_tokens = total_tokens
        self._stream: TextIO = stream or sys.stdout or io.StringIO()
        self._lost = stream is None and sys.stdout is None  # standard output was closed before Python started
        # A column never shrinks, so that lines stay aligned after a wide value.
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
            ("left", clock(record.eta_seconds), ""),
        ]
        self._line(fields, "bold")
        self._advance(record)

    def evaluation(self, record: EvalRecord) -> None:
        """Print the line of one evaluation, with the loss of the ablated memory and its difference if measured."""
        fields = self._position("eval", record)
        fields.append(("valid loss", _fixed(record.valid_loss, 6, 4), ""))
        if record.ablated_valid_loss is not None:
            difference = record.ablated_valid_loss - record.valid_loss
            fields.append(("memory ablated", f"{_fixed(record.ablated_valid_loss, 6, 4)} ({difference:+.4f})", ""))
        self._line(fields, "bold green")

    def note(self, text: str) -> None:
        """Print a sentence between the lines of records."""
        text = self._printable(text)
        self._write(text, Text(text))

    def close(self) -> None:
        """Remove the progress bar and restore the terminal; calling it again does nothing."""
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
        """Return `text` with escapes in place of characters that the console's encoding lacks."""
        encoding = self._stream.encoding or "utf-8"
        return text.encode(encoding, "backslashreplace").decode(encoding)

    def _survive(self, write: Callable[[], object]) -> None:
        """Call `write`; when the console fails for good, stop using it instead of ending the run."""
        if self._lost:
            return
        try:
            write()
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            if isinstance(error, OSError) and error.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
                return  # such as a full disk under a redirected output, which may have space later
            self._lost, self._rich, self._progress = True, None, None
            discard(self._stream)
            discard_unread_output()  # with the terminal, standard error may be gone too
            log.warning("the console cannot be written any more (%s); the run goes on and writes metrics.jsonl", error)

    def _advance(self, record: StepRecord) -> None:
        if self._rich is None:
            return
        if self._progress is None or self._task is None:
            # Only steps redraw the bar: a refresh thread would take time from them and would not survive a fork.
            self._progress = Progress(*_columns(), console=self._rich, auto_refresh=False)
            self._task = self._progress.add_task("", total=self._total_steps, phase="", tokens="", left="")
            self._survive(self._progress.start)
        tokens = f"{short(record.tokens)}/{short(self._total_tokens)} tokens"
        left, phase = f"{clock(record.eta_seconds)} left", self._printable(record.phase)
        if (progress := self._progress) is not None:
            progress.update(self._task, completed=record.step, phase=phase, tokens=tokens, left=left)
            self._survive(progress.refresh)


def discard(stream: TextIO) -> None:
    """Redirect a stream whose reader is gone to /dev/null, so that Python's last flush does not fail."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # the stream has no file descriptor, or is closed
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
    """Return `value` with up to `decimals` decimals in `width` characters, so that 10.987 aligns with 9.8765."""
    text = f"{value:.{decimals}f}"
    while len(text) > width and decimals > 0:
        decimals -= 1
        text = f"{value:.{decimals}f}"
    return text.rjust(width)
