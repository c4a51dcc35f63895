"""The options of an evaluation, and the names of its tasks."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep.errors import DataError
from data_prep.suggest import did_you_mean
from evaluation.babilong.cell import Mode
from evaluation.babilong.lengths import canonical, tokens_of
from evaluation.babilong.tasks import TASKS
from evaluation.cells import HARNESS, QUESTIONS
from evaluation.mmlu import SUBJECTS

SUITES = {"babilong": tuple(TASKS), "mmlu": SUBJECTS, "perplexity": (), QUESTIONS: ()}


@dataclass(frozen=True)
class Options:
    """The options that `launchers/evaluate.py --help` explains."""

    tasks: tuple[str, ...] = ("babilong",)
    lengths: tuple[str, ...] = ("0k", "1k", "2k", "4k")
    samples: int = 100
    mode: Mode = "prompt"
    babi: str | None = None
    background: tuple[str, ...] = ()
    released: str | None = None
    mmlu: Path | None = None
    shots: int = 5
    retrieval: Literal["none", "bm25", "dense"] = "none"
    top_k: int = 5
    unit: Literal["sentence", "chunk"] = "sentence"
    dense_model: str = "sentence-transformers/all-MiniLM-L6-v2"
    seed: int = 0
    questions: Path | None = None
    references: Path | None = None
    bank: Path | None = None
    include: Path | None = None

    def settings(self) -> dict[str, Any]:
        """Return the options that a row depends on. An evaluation continues only with equal ones.

        Tasks and lengths are not among them, so that more of them can be added.
        """
        kept = {name: value for name, value in asdict(self).items() if name not in ("tasks", "lengths")}
        if self.retrieval != "dense":
            del kept["dense_model"]
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in kept.items()}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in plain.items()
            if value is not None
        }

    def chosen(self, suite: str) -> list[str]:
        """Return the suite's tasks that were asked for: all by the suite's name, single ones by SUITE/TASK."""
        if suite in self.tasks:
            return list(SUITES[suite])
        return [name for name in SUITES[suite] if f"{suite}/{name}" in self.tasks]


def parse_tasks(text: str) -> tuple[str, ...]:
    """Parse "babilong/qa1,mmlu,perplexity,lm_eval:piqa". Raises `DataError` for an unknown task."""
    known = [*SUITES, *(f"{suite}/{task}" for suite, tasks in SUITES.items() for task in tasks)]
    names = _parts(text)
    for name in names:
        if name not in known and not name.startswith(HARNESS):
            raise DataError(f"--tasks: {name!r} is no task{did_you_mean(name, known)}")
    return names


def parse_lengths(text: str) -> tuple[str, ...]:
    """Parse "0k,4k,1M", and sort by length. Raises `DataError` for anything else."""
    return tuple(sorted({canonical(name) for name in _parts(text)}, key=tokens_of))


def _parts(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def parse_shares(option: str, text: str) -> dict[str, float]:
    """Parse "dense=3,single=1", or "dense" for all. Raises `DataError` for a share that is not a number."""
    shares = {}
    for part in _parts(text):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share or 1)
        except ValueError:
            raise DataError(f"{option}: {share!r} is not a number; write NAME=NUMBER,NAME=NUMBER") from None
    return shares


def check_positive(**values: int) -> None:
    """Raise `DataError` for numbers below 1."""
    for name, value in values.items():
        if value < 1:
            raise DataError(f"--{name.replace('_', '-')}: {value} must be at least 1")
