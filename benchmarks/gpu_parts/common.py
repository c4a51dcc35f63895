"""What the parts share: their setting, where results go as soon as there are any, batches, the clock."""

import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from training.batches import MicroBatch, StepBatch


@dataclass(frozen=True)
class Setting:
    """small: tiny sizes, to try the program itself; its speeds mean nothing."""

    small: bool
    device: torch.device


class Skipped(Exception):  # noqa: N818
    """A part that cannot run here, with the reason."""


class Notes:
    """A part's results, on disk after every addition: whatever stops the part, they stay.

    lines: a file that all parts add to, a line for each measurement.
    """

    def __init__(self, path: Path, lines: Path, **everywhere: Any) -> None:
        self.path, self.lines, self.everywhere = path, lines, everywhere
        self.values: dict[str, Any] = {}
        self.began = time.perf_counter()

    def add(self, **values: Any) -> None:
        self.values |= values
        aside = self.path.with_suffix(".new")
        aside.write_text(json.dumps(self.values), encoding="utf-8")
        aside.replace(self.path)

    def line(self, **values: Any) -> None:
        """One measurement, with what is the same for all of the part and the seconds since its start."""
        at = round(time.perf_counter() - self.began, 1)
        with self.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.everywhere | {"seconds": at} | values) + "\n")


def need_deepspeed() -> None:
    if not has_deepspeed():
        raise Skipped("deepspeed is not installed")


def has_deepspeed() -> bool:
    return importlib.util.find_spec("deepspeed") is not None


def wait_for(device: torch.device) -> None:
    """Until all that was started on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """How long one call takes, its work on the device included."""
    wait_for(device)
    started = time.perf_counter()
    function()
    wait_for(device)
    return time.perf_counter() - started


def random_step(micro_batches: int, samples: int, length: int, vocabulary: int) -> StepBatch:
    """Random tokens, two documents packed in every sample, in CPU memory as the data loader hands them over."""
    generator = torch.Generator().manual_seed(0)
    documents = (torch.arange(length) >= length // 3).long().repeat(samples, 1)
    parts = []
    for _ in range(micro_batches):
        ids = torch.randint(0, vocabulary, (samples, length + 1), generator=generator)
        before = F.pad(documents, (1, 0), value=-1)
        weights = torch.ones(samples, length)
        micro = MicroBatch(ids[:, :-1].contiguous(), before, ids[:, 1:].contiguous(), weights)
        parts.append(counted(micro, samples))
    return StepBatch(parts)


def counted(micro: MicroBatch, changes: int) -> MicroBatch:
    """With the number of changes of document that the loader counts, where it does."""
    return replace(micro, changes=changes) if hasattr(micro, "changes") else micro
