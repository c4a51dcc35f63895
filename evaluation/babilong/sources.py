"""The sources of samples: bAbI's files or the simulator with background text, or the published files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from data_prep.errors import DataError
from evaluation.babilong.facts import WHERE, Question, babi_files, read_babi, without
from evaluation.babilong.generator import Generator, Sample, shuffled
from evaluation.babilong.hub import hub_questions, splits_there
from evaluation.babilong.released import find_released, load_released
from evaluation.babilong.simulator import Part, simulate

# the split to read for each part; the second when the first is missing
SPLITS: dict[Part, tuple[str, ...]] = {"test": ("test", "valid"), "train": ("train",)}


class Samples(Protocol):
    """A source of a cell's samples, which describes its origin for results."""

    def samples(self, task: str, length: str, count: int) -> Iterator[Sample]: ...

    def check(self, task: str, length: str) -> None:
        """Raise `DataError` when a cell's files are missing."""

    def describe(self) -> dict[str, Any]: ...


@dataclass
class Generated:
    """Samples with questions of bAbI's files (`babi`: a folder, or hf:NAME), or of the simulator (None).

    Questions that, with the facts before them, are also in the other part's files are left out and counted in `shared`.
    """

    generator: Generator
    babi: str | None
    splits: dict[str, str] = field(default_factory=dict)  # task -> split that was read
    shared: dict[str, int] = field(default_factory=dict)  # task -> questions left out
    _questions: dict[str, list[Question]] = field(default_factory=dict)

    def samples(self, task: str, length: str, count: int) -> Iterator[Sample]:
        return self.generator.samples(task, length, self.questions(task), count)

    def check(self, task: str, length: str) -> None:
        next(self.questions(task))

    def questions(self, task: str) -> Iterator[Question]:
        """Yield the task's questions, in an order that depends on the seed alone."""
        if self.babi is None:
            return simulate(task, self.generator.seed, self.part)
        if task not in self._questions:
            self._questions[task] = self._read(task)
        return shuffled(self._questions[task], task, self.generator.seed)

    @property
    def part(self) -> Part:
        return self.generator.part

    def describe(self) -> dict[str, Any]:
        background = self.generator.background
        what: dict[str, Any] = {"facts": "simulator" if self.babi is None else "bAbI files"}
        if self.babi is not None:
            what |= {"place": self.babi, "splits": dict(self.splits), "shared_with_other_files": dict(self.shared)}
        return what | {"background": background.name if background else "none", "seed": self.generator.seed}

    def _read(self, task: str) -> list[Question]:
        assert self.babi is not None
        there = splits_of(self.babi, task)
        chosen = [split for split in SPLITS[self.part] if split in there][:1]
        if not chosen:
            raise missing(self.babi, task, self.part)
        others = [split for part in SPLITS if part != self.part for split in SPLITS[part] if split in there]
        known = [question for split in others for question in there[split]()]
        kept, self.shared[task] = without(there[chosen[0]](), known)
        self.splits[task] = chosen[0]
        return kept


@dataclass(frozen=True)
class Released:
    """The published samples, or others in the same form."""

    place: str

    def samples(self, task: str, length: str, count: int) -> Iterator[Sample]:
        return iter(load_released(self.place, task, length)[:count])

    def check(self, task: str, length: str) -> None:
        if not self.place.startswith("hf:"):
            find_released(Path(self.place), task, length)

    def describe(self) -> dict[str, Any]:
        return {"facts": "released JSON", "place": self.place, "background": "as released"}


def missing(place: str, task: str, part: Part) -> DataError:
    """Return the error for a folder without a task's file."""
    wanted = " or ".join(f"{task}_{split}.txt" for split in SPLITS[part])
    return DataError(f"--babi: {place} has no {wanted}; {WHERE}")


def splits_of(place: str, task: str) -> dict[str, Callable[[], list[Question]]]:
    """Return, for each split that exists, the function that reads it."""
    if place.startswith("hf:"):
        return {split: partial(hub_questions, place, task, split) for split in splits_there(place, task)}
    files = babi_files(Path(place).expanduser(), task)
    return {split: partial(read_babi, path) for split, path in files.items()}
