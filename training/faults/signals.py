"""Signals that ask a run to save and stop: SIGTERM (preemption) and SIGUSR2 (the time limit is near)."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

HANDLED = (signal.SIGTERM, signal.SIGUSR2)


class StopSignal:
    """While it is entered, a signal is only noted here: saving happens at a step's end, by all ranks together."""

    def __init__(self) -> None:
        self.name = ""  # of the first signal that came
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            for number in HANDLED:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
