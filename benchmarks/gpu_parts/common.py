"""What the parts share: their setting, where results go as soon as there are any, batches, the clock."""

import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
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


class TooLarge(Exception):  # noqa: N818
    """A part to be tried again, in a fresh process, with so many samples a micro-batch."""

    def __init__(self, samples: int) -> None:
        super().__init__(samples)
        self.samples = samples


class Notes:
    """A part's results, on disk after every addition: whatever stops the part, they stay."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}

    def add(self, **values: Any) -> None:
        self.values |= values
        aside = self.path.with_suffix(".new")
        aside.write_text(json.dumps(self.values), encoding="utf-8")
        aside.replace(self.path)


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
        parts.append(MicroBatch(ids[:, :-1].contiguous(), before, ids[:, 1:].contiguous(), weights))
    return StepBatch(parts)
