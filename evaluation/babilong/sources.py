"""Where samples come from: bAbI's files or the simulator among background text, or the published files."""

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

# which file of a folder is for what; the second is taken where the first is not there
SPLITS: dict[Part, tuple[str, ...]] = {"test": ("test", "valid"), "train": ("train",)}


class Samples(Protocol):
    """Anything that has samples of a cell, and can say for results where they are from."""

    def samples(self, task: str, length: str, count: int) -> Iterator[Sample]: ...

    def check(self, task: str, length: str) -> None:
        """Raises `DataError` when a cell's files are missing."""

    def describe(self) -> dict[str, Any]: ...


@dataclass
class Generated:
    """Questions of bAbI's files (`babi`: a folder, or hf:NAME), or the simulator's when that is None.

    Questions whose facts and words also stand in the other part's files are left out, and counted in `shared`.
    """

    generator: Generator
    babi: str | None
    splits: dict[str, str] = field(default_factory=dict)  # task -> which of the files was read
    shared: dict[str, int] = field(default_factory=dict)  # task -> questions left out
    _questions: dict[str, list[Question]] = field(default_factory=dict)

    def samples(self, task: str, length: str, count: int) -> Iterator[Sample]:
        return self.generator.samples(task, length, self.questions(task), count)

    def check(self, task: str, length: str) -> None:
        next(self.questions(task))

    def questions(self, task: str) -> Iterator[Question]:
        """In an order that depends on the seed alone."""
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
    """The published samples, or any in their form."""

    place: str

    def samples(self, task: str, length: str, count: int) -> Iterator[Sample]:
        return iter(load_released(self.place, task, length)[:count])

    def check(self, task: str, length: str) -> None:
        if not self.place.startswith("hf:"):
            find_released(Path(self.place), task, length)

    def describe(self) -> dict[str, Any]:
        return {"facts": "released JSON", "place": self.place, "background": "as released"}


def missing(place: str, task: str, part: Part) -> DataError:
    """The error of a folder without a task's file."""
    wanted = " or ".join(f"{task}_{split}.txt" for split in SPLITS[part])
    return DataError(f"--babi: {place} has no {wanted}; {WHERE}")


def splits_of(place: str, task: str) -> dict[str, Callable[[], list[Question]]]:
    """Split -> what reads it, of those that are there."""
    if place.startswith("hf:"):
        return {split: partial(hub_questions, place, task, split) for split in splits_there(place, task)}
    files = babi_files(Path(place).expanduser(), task)
    return {split: partial(read_babi, path) for split, path in files.items()}
