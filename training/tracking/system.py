"""A thread that samples CPU, memory, disk, network and GPUs of rank 0's machine during training."""

import logging
import threading
from collections.abc import Callable

from training.tracking.store import SystemMonitors

log = logging.getLogger("memtrain.tracking")


class SystemSampler:
    """Calls `report` with a sample every `seconds`; an error while sampling ends the thread."""

    def __init__(self, seconds: float, report: Callable[[dict[str, float]], bool]) -> None:
        """Start the thread.

        report: returns whether it used the sample; when it did not, the next sample follows within a second.
        """
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
        except Exception as error:  # end the thread, so that a failing driver is reported once only
            log.warning("system metrics end here: %s: %s", type(error).__name__, error)

    def close(self) -> None:
        """End the thread, waiting up to 2 s for it."""
        self._stop.set()
        self._thread.join(2)
