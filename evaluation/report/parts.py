"""The parts of a page, for HTML and Markdown: sections with paragraphs, tables, figures and what is missing."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import sqrt

from markupsafe import Markup
from matplotlib.figure import Figure

from evaluation.report.sources import Run
from evaluation.results import Row as Result


@dataclass(frozen=True)
class Score:
    """A share of right answers in percent, with its 95 % interval; published scores have none."""

    value: float
    low: float | None = None
    high: float | None = None
    samples: int | None = None
    mean: bool = False  # a mean of several cells is shown with a decimal

    @classmethod
    def of(cls, row: Result, mean: bool = False) -> "Score | None":
        """Return a result's share of right answers, or None when it has none."""
        if row.accuracy is None:
            return None
        low, high = (None if x is None else 100 * x for x in (row.low, row.high))
        return cls(100 * row.accuracy, low, high, row.samples, mean)

    def cell(self) -> "Cell":
        if self.low is None or self.high is None:
            return Cell(f"{self.value:.{int(self.mean)}f}")
        digits = 1 if self.mean or (self.samples or 0) >= 1000 else 0
        return Cell(f"{self.value:.{digits}f}", f"{self.low:.{digits}f}–{self.high:.{digits}f}")


def mean(scores: Sequence[Score]) -> Score | None:
    """Return the mean of independent scores: of one score itself, of none None.

    Its interval combines the distances of the scores' limits in quadrature (MOVER: Zou and Donner 2008), so that skewed
    Wilson intervals stay skewed. Without an interval of one of the scores it has none.
    """
    if len(scores) < 2:
        return scores[0] if scores else None
    value = sum(s.value for s in scores) / len(scores)
    if any(s.low is None or s.high is None for s in scores):
        return Score(value, mean=True)
    down = sqrt(sum((s.value - (s.low or 0.0)) ** 2 for s in scores)) / len(scores)
    up = sqrt(sum(((s.high or 0.0) - s.value) ** 2 for s in scores)) / len(scores)
    return Score(value, value - down, value + up, sum(s.samples or 0 for s in scores), mean=True)


@dataclass(frozen=True)
class Cell:
    """The text of a cell, and small text below it, such as an interval."""

    text: str = ""
    small: str = ""


def cell(score: Score | None) -> Cell:
    """Return the cell of a score; a dash where nothing was measured."""
    return Cell("–") if score is None else score.cell()


@dataclass(frozen=True)
class Row:
    """The row of one model, ours or a published one."""

    name: str
    cells: Sequence[Cell]
    published: bool = False
    badges: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Rows of a table below a heading; an empty title means no heading."""

    title: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Table:
    """A table of a section: its head, and rows in groups with a rule between them."""

    caption: str
    head: Sequence[str]
    groups: Sequence[Group]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure with its caption; file: name of its PNG without suffix."""

    file: str
    caption: str
    figure: Figure
    narrow: bool = False


@dataclass(frozen=True)
class Missing:
    """What a section lacks, and the command that makes it."""

    what: str
    command: str


@dataclass(frozen=True)
class Section:
    """One section of the page, from its title to what it lacks."""

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()
    missing: Sequence[Missing] = ()
    inner: Sequence[tuple[str, Markup]] = field(default_factory=tuple)  # heading and HTML, which Markdown leaves out


def lacking(what: str, runs: Sequence[Run], command: str) -> list[Missing]:
    """Return a message for the runs that lack something; `{run}` in the command becomes the first one's place."""
    if not runs:
        return []
    names = ", ".join(run.name for run in runs)
    return [Missing(f"No {what}: {names}", command.replace("{run}", shlex.quote(runs[0].place)))]


def each(rows: Iterable[Row]) -> list[Group]:
    """Return rows as the only group of a table, without heading."""
    return [Group("", list(rows))]
