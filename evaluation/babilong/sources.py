"""Where samples come from: bAbI's files or the simulator among background text, or the published files."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from evaluation.babilong.facts import Question, babi_file, read_babi, without
from evaluation.babilong.generator import Generator, Sample, shuffled
from evaluation.babilong.hub import hub_questions
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
    files: dict[str, str] = field(default_factory=dict)  # task -> what was read
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
            what |= {"files": dict(self.files), "shared_with_other_files": dict(self.shared)}
        return what | {"background": background.name if background else "none", "seed": self.generator.seed}

    def _read(self, task: str) -> list[Question]:
        assert self.babi is not None
        mine, name = _open(self.babi, task, self.part)
        others = [q for other in SPLITS if other != self.part for q in _others(self.babi, task, other)]
        kept, self.shared[task] = without(mine, others)
        self.files[task] = name
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
        return {"facts": "released JSON", "files": self.place, "background": "as released"}


def _open(place: str, task: str, part: Part) -> tuple[list[Question], str]:
    if place.startswith("hf:"):
        return hub_questions(place, task, SPLITS[part]), f"{place} {task}"
    path, _ = babi_file(Path(place).expanduser(), task, SPLITS[part])
    return read_babi(path), path.name


def _others(place: str, task: str, part: Part) -> list[Question]:
    """Every question of the other part's files; none where there are no such files."""
    if place.startswith("hf:"):
        return hub_questions(place, task, SPLITS[part])
    folder = Path(place).expanduser()
    found = [sorted([*folder.glob(f"{task}_{s}.txt"), *folder.glob(f"{task}_*_{s}.txt")]) for s in SPLITS[part]]
    return [question for paths in found for path in paths for question in read_babi(path)]
