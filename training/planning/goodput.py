"""The fraction of time spent training when devices fail, and the checkpoint interval that maximises it.

Model: devices fail independently at a constant rate, so the time between failures of N devices is exponential with mean
M = MTBF / N. A checkpoint stops training for d seconds and is on disk w seconds after its start. A failure costs the
work since the last checkpoint on disk, and r seconds until training continues.

J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22 (2006), refines
J. W. Young's sqrt(2 d M), CACM 17 (1974).
"""

import math
from dataclasses import dataclass

from training.errors import ConfigError
from training.planning.plan import DAY, Plan

HOUR = 3600.0
# Llama 3 (arXiv 2407.21783, section 3.3.4): 419 unexpected interruptions in 54 days on 16,384 H100, one in 50,700 hours
# of a device
MTBF = 50_000 * HOUR
# Assumptions, which every table prints
HELD_LEAST = 1.0  # seconds that even a small checkpoint stops training
STORAGE = 1e9  # bytes/s at which a machine reads from and writes to the file system
RESTART = 300.0  # seconds to notice a failure, get machines, start the processes and build the engine


def parse_mtbf(text: str) -> float:
    """Return the seconds of a text in hours; `MTBF` for an empty text. Raises `ConfigError`."""
    if not text:
        return MTBF
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not (math.isfinite(hours) and hours > 0):
        raise ConfigError(f"--mtbf: '{text}' must be the hours between two failures of one device, such as 50000")
    return hours * HOUR


def best_interval(between_failures: float, held: float) -> float:
    """Return the seconds of training between two checkpoints that maximise the time spent training (Daly, eq. 37).

    between_failures: mean seconds between failures; held: seconds that a checkpoint stops training.
    """
    if held >= 2 * between_failures:
        return between_failures
    ratio = held / (2 * between_failures)
    return math.sqrt(2 * held * between_failures) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - held


def training_share(interval: float, between_failures: float, held: float, lost: float) -> float:
    """Return the fraction of time spent training, 0..1, with a checkpoint every `interval` seconds of training.

    It takes M (exp(x/M) - 1) seconds on average until x seconds have passed without a failure (Daly, section 2). A
    failure during a restart begins the restart again.

    Args:
        interval: seconds of training between checkpoints.
        between_failures: M, mean seconds between failures of all devices.
        held: seconds that a checkpoint stops training.
        lost: seconds that a failure costs beside the work since the last checkpoint.
    """
    m = between_failures
    try:
        return interval / (m * math.exp(lost / m) * math.expm1((interval + held) / m))
    except OverflowError:
        return 0.0


@dataclass(frozen=True)
class Goodput:
    """A plan on devices of which each fails every `mtbf` seconds on average; all times in seconds."""

    plan: Plan
    mtbf: float

    @property
    def machines(self) -> float:
        """Number of machines, at least 1."""
        return max(1.0, self.plan.ranks.world / self.plan.device.node_size)

    @property
    def between_failures(self) -> float:
        """Mean seconds between failures of all devices together."""
        return self.mtbf / self.plan.ranks.world

    @property
    def written(self) -> float:
        """Seconds from the start of a checkpoint until it is on disk."""
        return HELD_LEAST + self.plan.checkpoint_bytes / (self.machines * STORAGE)

    @property
    def held(self) -> float:
        """Seconds that a checkpoint stops training: for the copy to CPU memory, or if synchronous for all of it."""
        if not self.plan.config.checkpoint.asynchronous:
            return self.written
        return HELD_LEAST + self.plan.checkpoint_bytes / self.plan.ranks.world / self.plan.device.host_link

    @property
    def restart(self) -> float:
        """Seconds from a failure until training continues; the checkpoint is read for its checksums and its values."""
        return RESTART + 2 * self.plan.checkpoint_bytes / (self.machines * STORAGE)

    @property
    def interval(self) -> float:
        """Best seconds between checkpoints, at least the time to write one and the time of a step."""
        return max(best_interval(self.between_failures, self.held), self.written, self.step)

    @property
    def step(self) -> float:
        """Mean seconds of a step."""
        return self.plan.seconds / sum(phase.steps for phase in self.plan.config.phases)

    @property
    def every_steps(self) -> int:
        """The best interval in steps, for `checkpoint.every_steps`."""
        return max(1, round(self.interval / self.step))

    def share(self, interval: float) -> float:
        """Return the fraction of time spent training with a checkpoint every `interval` seconds."""
        beside = self.written - self.held  # training during the write is lost if a failure comes before its end
        return training_share(interval, self.between_failures, self.held, self.restart + beside)

    @property
    def best_share(self) -> float:
        """The fraction of time spent training with the best interval."""
        return self.share(self.interval)

    @property
    def own_share(self) -> float:
        """The fraction of time spent training with the configured `checkpoint.every_steps`."""
        return self.share(self.plan.config.checkpoint.every_steps * self.step)

    @property
    def days(self) -> float:
        """Days of the whole run with its failures; infinite when it never ends."""
        return self.plan.seconds / DAY / self.best_share if self.best_share else math.inf

    @property
    def failures(self) -> float:
        """Expected number of failures over the whole run."""
        return self.days * DAY / self.between_failures
