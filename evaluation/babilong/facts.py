"""bAbI's text files (Weston et al. 2015): numbered facts, and questions with answer and supporting facts after tabs."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from data_prep.errors import DataError
from data_prep.files import lines_of

WHERE = (
    "bAbI v1.2 (CC BY 3.0) is at https://research.facebook.com/downloads/babi/ ; its folder en-10k has "
    "qa1_single-supporting-fact_train.txt and so on"
)
_LINE = re.compile(r"(\d+) (.*)")


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the facts told before it; `supporting` are indices of the facts that answer it, where known."""

    facts: tuple[str, ...]
    question: str
    answer: str
    supporting: tuple[int, ...] = ()

    @property
    def identity(self) -> int:
        """xxh3 of facts and question: what a model could learn by heart."""
        return xxhash.xxh3_64_intdigest("\n".join((*self.facts, self.question)).encode())


def read_babi(path: Path) -> list[Question]:
    """All questions of a file, each with the facts (not the questions) of its story that stand before it.

    Raises:
        DataError: naming the line that has no number, no answer, or refers to a line that is no fact before it.
    """
    try:
        lines = lines_of(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error}); {WHERE}") from None
    return list(_questions(lines, path))


def _questions(lines: Iterable[str], path: Path) -> Iterator[Question]:
    facts: dict[int, str] = {}
    for row, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            raise DataError(f"{path}:{row}: {line[:40]!r} has no number at its start; {WHERE}")
        number, text = int(match[1]), match[2]
        if number == 1:
            facts = {}
        if "\t" not in text:
            facts[number] = text.strip()
            continue
        question, answer, *supporting = (part.strip() for part in text.split("\t"))
        if not answer or not question:
            raise DataError(f"{path}:{row}: the question {question!r} has the answer {answer!r}; {WHERE}")
        places = {place: index for index, place in enumerate(facts)}
        numbers = [int(n) for n in " ".join(supporting).split()]
        if unknown := [n for n in numbers if n not in places]:
            raise DataError(f"{path}:{row}: refers to line {unknown[0]} of its story, which is no fact before it")
        yield Question(tuple(facts.values()), question, answer, tuple(places[n] for n in numbers))


def babi_files(folder: Path, task: str) -> dict[str, Path]:
    """Split -> file of a task, under bAbI's own names (qa1_single-supporting-fact_test.txt) or short (qa1_test.txt).

    Raises `DataError` when the folder is none.
    """
    if not folder.is_dir():
        raise DataError(f"--babi: {folder} is no folder; {WHERE}")
    return {path.stem.rpartition("_")[2]: path for path in sorted(folder.glob(f"{task}_*.txt"))}


def without(questions: Iterable[Question], others: Iterable[Question]) -> tuple[list[Question], int]:
    """Questions that are not, with the same facts before them, among `others`; and how many were."""
    known = {other.identity for other in others}
    everything = list(questions)
    kept = [question for question in everything if question.identity not in known]
    return kept, len(everything) - len(kept)
