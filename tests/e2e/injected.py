"""Faults that the ranks of an attempt bring about themselves, at a step and a rank that the test chose."""

import errno
import math
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from training.batches import StepBatch


@dataclass(frozen=True)
class AtSteps:
    """On `rank`, or on all with -1, in the run's steps first..last."""

    rank: int
    first: int
    last: int

    def here(self) -> bool:
        return self.rank in (-1, int(os.environ["RANK"]))

    def wrap(self, change: Callable[[StepBatch], StepBatch]) -> None:
        """Change the batch of these steps."""
        from training.trainer import Trainer

        original = Trainer._train_step

        def train_step(trainer: Any, engine: Any, phase: Any) -> bool:
            if self.first <= trainer.step + 1 <= self.last:
                plain = engine._normalise_by_global_tokens
                engine._normalise_by_global_tokens = lambda batch: change(plain(batch))
                try:
                    return original(trainer, engine, phase)
                finally:
                    engine._normalise_by_global_tokens = plain
            return original(trainer, engine, phase)

        Trainer._train_step = train_step  # type: ignore[method-assign, assignment]


@dataclass(frozen=True)
class Scaled(AtSteps):
    """Multiplies every label's weight: NaN makes the loss one, 100 makes it spike."""

    factor: float = math.nan

    def __call__(self) -> None:
        if self.here():
            self.wrap(
                lambda batch: StepBatch([replace(m, weights=m.weights * self.factor) for m in batch.micro_batches])
            )


@dataclass(frozen=True)
class Hang(AtSteps):
    """Waits for ever in the middle of a step."""

    def __call__(self) -> None:
        def wait_for_ever(batch: StepBatch) -> StepBatch:
            threading.Event().wait()
            return batch

        if self.here():
            self.wrap(wait_for_ever)


@dataclass(frozen=True)
class Slow:
    """Every forward pass of `rank` takes longer."""

    rank: int
    seconds: float

    def __call__(self) -> None:
        from training.engine import LossModel

        forward = LossModel.forward

        def slowly(model: Any, micro: Any) -> Any:
            time.sleep(self.seconds)
            return forward(model, micro)

        if self.rank == int(os.environ["RANK"]):
            LossModel.forward = slowly  # type: ignore[method-assign, assignment]


@dataclass(frozen=True)
class OutOfMemory(AtSteps):
    """Asks for more memory than there is."""

    def __call__(self) -> None:
        def too_much(batch: StepBatch) -> StepBatch:
            import torch

            torch.empty(1 << 60)
            return batch

        if self.here():
            self.wrap(too_much)


@dataclass(frozen=True)
class ShortFiles:
    """The system takes only so many bytes a file: writing fails in the middle, as on a disk that has filled up."""

    bytes: int

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes, self.bytes))


@dataclass(frozen=True)
class FullDisk:
    """The disk has no room for a checkpoint, from the n-th on."""

    after: int

    def __call__(self) -> None:
        asked = []
        usage = shutil.disk_usage

        def full(path: Any) -> Any:
            asked.append(path)
            return usage(path)._replace(free=1000) if len(asked) > self.after else usage(path)

        shutil.disk_usage = full  # type: ignore[assignment]


@dataclass(frozen=True)
class SlowDisk:
    """A file of a checkpoint takes longer; and another fault."""

    seconds: float
    other: Callable[[], None]

    def __call__(self) -> None:
        from training.checkpoint.storage import HashedFile

        close = HashedFile.close

        def slowly(file: HashedFile) -> None:
            if not file.closed:
                time.sleep(self.seconds)
            close(file)

        HashedFile.close = slowly  # type: ignore[method-assign, assignment]
        self.other()


@dataclass(frozen=True)
class NoRoom(AtSteps):
    """From a step on, no file of the run can be written; those of checkpoints are `FullDisk`'s."""

    def __call__(self) -> None:
        from training import reporter
        from training.monitoring import records
        from training.tracking import facts

        def full(*_: Any) -> NoReturn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def fill(batch: StepBatch) -> StepBatch:
            for owner, name in ((records.MetricsFile, "write"), (facts, "write_end"), (reporter, "plot_loss")):
                setattr(owner, name, full)
            return batch

        if self.here():
            self.wrap(fill)
