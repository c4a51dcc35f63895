"""Signals that ask a run to save and stop: a preemption, a time limit, a terminal that goes, a person's Ctrl-C."""

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
# nohup ignores the first for its command, a shell both for commands in the background: they are left ignored
_KEPT_IGNORED = (signal.SIGHUP, signal.SIGINT)
# A launcher passes on the Ctrl-C that the terminal has sent to its ranks already: so soon after it is the same one.
SAME_SECONDS = 0.5


class StopSignal:
    """While it is entered, a signal is only noted here: saving happens at a step's end, by all ranks together.

    A second SIGINT ends the process at once, from a thread, for the main thread may wait in a collective and never come
    to run a handler.
    """

    def __init__(self, speaks: bool = False) -> None:
        """Nothing is handled yet.

        speaks: say on standard error what a signal leads to.
        """
        self.number = 0  # of the first signal that came
        self.at_once: Callable[[], None] = lambda: None  # called in a thread before a second SIGINT ends the process
        self._speaks = speaks
        self._before: dict[int, Any] = {}
        self._interrupted = 0.0
        # Python writes the number of each signal into the second
        self._ends: tuple[socket.socket, socket.socket] | None = None

    @property
    def name(self) -> str:
        """The first signal that came, or nothing."""
        return signal.Signals(self.number).name if self.number else ""

    def __bool__(self) -> bool:
        return bool(self.number)

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is not threading.main_thread():  # others may not set handlers
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
            self._ends[1].close()  # which ends the thread

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
            more = "; once more ends at once, unsaved" if number == signal.SIGINT else ""
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
