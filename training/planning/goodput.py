"""Which part of a run's time trains when devices fail: the best checkpoint interval, failures, restarts.

Failures come at random, independently, at a rate that does not change: the time between two failures of N devices has
an exponential distribution with mean M = MTBF / N. A checkpoint holds training for d seconds and is on disk w seconds
later; a failure costs the work since the last checkpoint on disk, and r seconds until training goes on.

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
# Assumptions, said with every table
HELD_LEAST = 1.0  # seconds that training waits for a checkpoint, however small
STORAGE = 1e9  # bytes/s that a machine reads from and writes to the file system
RESTART = 300.0  # seconds to notice a failure, to get machines again, to start the processes and to build the engine


def parse_mtbf(text: str) -> float:
    """Hours -> seconds; an empty text for `MTBF`. Raises `ConfigError`."""
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
    """Seconds of training between two checkpoints that leave most of the time to training (Daly, equation 37)."""
    if held >= 2 * between_failures:
        return between_failures
    ratio = held / (2 * between_failures)
    return math.sqrt(2 * held * between_failures) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - held


def training_share(interval: float, between_failures: float, held: float, lost: float) -> float:
    """The part of the time that trains, 0..1, with a checkpoint every `interval` seconds of training.

    held: seconds of training that a checkpoint takes; lost: seconds that a failure costs beside the work since the last
    checkpoint. A stretch of x seconds without a failure is there after M (exp(x/M) - 1) seconds on average (Daly,
    section 2); a failure while the run restarts begins the restart anew.
    """
    m = between_failures
    try:
        return interval / (m * math.exp(lost / m) * math.expm1((interval + held) / m))
    except OverflowError:
        return 0.0


@dataclass(frozen=True)
class Goodput:
    """A plan on devices that fail every `mtbf` seconds, each; times in seconds."""

    plan: Plan
    mtbf: float

    @property
    def machines(self) -> float:
        return max(1.0, self.plan.ranks.world / self.plan.device.node_size)

    @property
    def between_failures(self) -> float:
        """Of all devices."""
        return self.mtbf / self.plan.ranks.world

    @property
    def written(self) -> float:
        """From a checkpoint's begin until it is on disk."""
        return HELD_LEAST + self.plan.checkpoint_bytes / (self.machines * STORAGE)

    @property
    def held(self) -> float:
        """How long a checkpoint holds training: the copy to CPU memory, or without `checkpoint.asynchronous` all."""
        if not self.plan.config.checkpoint.asynchronous:
            return self.written
        return HELD_LEAST + self.plan.checkpoint_bytes / self.plan.ranks.world / self.plan.device.host_link

    @property
    def restart(self) -> float:
        """From a failure until training goes on; a checkpoint is read twice, for its checksums and for its values."""
        return RESTART + 2 * self.plan.checkpoint_bytes / (self.machines * STORAGE)

    @property
    def interval(self) -> float:
        """The best time between checkpoints; no shorter than a checkpoint takes to be written, or a step."""
        return max(best_interval(self.between_failures, self.held), self.written, self.step)

    @property
    def step(self) -> float:
        """Seconds of a step, on average."""
        return self.plan.seconds / sum(phase.steps for phase in self.plan.config.phases)

    @property
    def every_steps(self) -> int:
        """The best interval as `checkpoint.every_steps`."""
        return max(1, round(self.interval / self.step))

    def share(self, interval: float) -> float:
        """The part of the time that trains with a checkpoint every `interval` seconds."""
        beside = self.written - self.held  # written beside training, which is lost if a failure comes before its end
        return training_share(interval, self.between_failures, self.held, self.restart + beside)

    @property
    def best_share(self) -> float:
        return self.share(self.interval)

    @property
    def own_share(self) -> float:
        """With the configuration's own `checkpoint.every_steps`."""
        return self.share(self.plan.config.checkpoint.every_steps * self.step)

    @property
    def days(self) -> float:
        """Of the whole run, failures included; infinite where it never ends."""
        return self.plan.seconds / DAY / self.best_share if self.best_share else math.inf

    @property
    def failures(self) -> float:
        """Expected over the whole run."""
        return self.days * DAY / self.between_failures
