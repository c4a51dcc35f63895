"""A thread that samples the machine of rank 0 while it trains."""

import logging
import threading
from collections.abc import Callable

from training.tracking.store import SystemMonitors

log = logging.getLogger("memtrain.tracking")


class SystemSampler:
    """Calls `report` with a sample every `seconds`, first soon after the first step; a failing reading ends it."""

    def __init__(self, seconds: float, report: Callable[[dict[str, float]], bool]) -> None:
        """`report` says whether it could use the sample; one it could not is followed by another within a second."""
        self._seconds, self._report = seconds, report
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="system-metrics", daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        try:
            monitors = SystemMonitors()
            pause = min(1.0, self._seconds)
            while not self._stop.wait(pause):
                pause = self._seconds if self._report(monitors.read()) else min(1.0, self._seconds)
        except Exception as error:  # a driver that is gone must not be heard of more than once
            log.warning("no more system metrics: %s: %s", type(error).__name__, error)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(2)
