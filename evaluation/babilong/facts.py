"""Read bAbI's text files (Weston et al. 2015): numbered facts, and questions with tab, answer and supporting facts."""

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
    """A question with its answer and the facts before it; supporting: indices of the facts that answer it, if known."""

    facts: tuple[str, ...]
    question: str
    answer: str
    supporting: tuple[int, ...] = ()

    @property
    def identity(self) -> int:
        """xxh3 of facts and question, with which a model could memorise the answer."""
        return xxhash.xxh3_64_intdigest("\n".join((*self.facts, self.question)).encode())


def read_babi(path: Path) -> list[Question]:
    """Return all questions of a file, each with the facts of its story before it.

    Raises:
        DataError: a line has no number or answer, or refers to a line that is not an earlier fact; it names the line.
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
            raise DataError(
                f"{path}:{row}: refers to line {unknown[0]} of its story, which is not a fact before it; {WHERE}"
            )
        yield Question(tuple(facts.values()), question, answer, tuple(places[n] for n in numbers))


def babi_files(folder: Path, task: str) -> dict[str, Path]:
    """Return split -> file of a task, with bAbI's name (qa1_single-supporting-fact_test.txt) or short (qa1_test.txt).

    Raises `DataError` when `folder` is not a folder.
    """
    if not folder.is_dir():
        raise DataError(f"--babi: {folder} is no folder; {WHERE}")
    return {path.stem.rpartition("_")[2]: path for path in sorted(folder.glob(f"{task}_*.txt"))}


def without(questions: Iterable[Question], others: Iterable[Question]) -> tuple[list[Question], int]:
    """Return the questions that are not, with equal facts before them, among `others`, and how many are."""
    known = {other.identity for other in others}
    everything = list(questions)
    kept = [question for question in everything if question.identity not in known]
    return kept, len(everything) - len(kept)
