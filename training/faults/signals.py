"""Signals that ask a run to save and stop: preemption, time limit, a closed terminal, Ctrl-C."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from training.errors import EXIT_INTERRUPTED

HANDLED = (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
# stay ignored where they already are: nohup ignores SIGHUP, a shell ignores both for background commands
_KEPT_IGNORED = (signal.SIGHUP, signal.SIGINT)
# The terminal sends Ctrl-C to the ranks, and a launcher passes it on to them: a second SIGINT within so many seconds is
# the same key press.
SAME_SECONDS = 0.5


class StopSignal:
    """Context in which a signal is only recorded; the trainer saves and stops at the end of the step, on all ranks.

    A second SIGINT ends the process at once. A thread does this, because the main thread may wait in a collective and
    would not run a Python signal handler.
    """

    def __init__(self, speaks: bool = False) -> None:
        """Install no handler yet; entering the context does.

        speaks: print on standard error what a signal causes.
        """
        self.number = 0  # of the first signal received; 0: none
        self.at_once: Callable[[], None] = lambda: None  # called in a thread before a second SIGINT ends the process
        self._speaks = speaks
        self._before: dict[int, Any] = {}
        self._interrupted = 0.0
        # Python writes the number of each signal into the second socket; the thread reads it from the first
        self._ends: tuple[socket.socket, socket.socket] | None = None

    @property
    def name(self) -> str:
        """Name of the first signal received; empty when there was none."""
        return signal.Signals(self.number).name if self.number else ""

    def __bool__(self) -> bool:
        return bool(self.number)

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():  # Python lets only the main thread set handlers
            return self
        for number in HANDLED:
            if not (number in _KEPT_IGNORED and signal.getsignal(number) is signal.SIG_IGN):
                self._before[number] = signal.signal(number, self._note)
        self._ends = socket.socketpair()
        self._ends[1].setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._ends[1].fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(self._ends[0],), name="signals", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._ends:
            signal.set_wakeup_fd(self._wakeup_before)
            self._ends[1].close()  # ends the thread

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number

    def _listen(self, end: socket.socket) -> None:
        with end:
            while numbers := end.recv(64):
                for number in numbers:
                    if number in self._before:
                        self._heard(number)

    def _heard(self, number: int) -> None:
        now, first = time.monotonic(), not self._interrupted
        if number != signal.SIGINT or first:
            self._interrupted = now if number == signal.SIGINT else self._interrupted
            more = "; a second Ctrl-C ends it at once, unsaved" if number == signal.SIGINT else ""
            self._say(f"{signal.Signals(number).name}: the run is saved at the end of this step and ends{more}")
        elif now - self._interrupted > SAME_SECONDS:
            self._say("SIGINT again: the run ends at once; the same command continues it from its last checkpoint")
            with contextlib.suppress(Exception):
                self.at_once()
            os._exit(EXIT_INTERRUPTED)

    def _say(self, text: str) -> None:
        if self._speaks:
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, f"\n{text}\n".encode())
