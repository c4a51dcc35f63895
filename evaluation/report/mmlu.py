"""MMLU: Table 2, by category and by level."""

from collections.abc import Callable
from typing import Any

from evaluation.intervals import wilson
from evaluation.report.parts import Cell, Missing, Row, Score, Section, Table, cell, each, mean
from evaluation.report.sources import Evaluated, Run, evaluated
from evaluation.results import Row as Result

PREFIX = "mmlu/"
CATEGORIES = 4  # the first columns; the others are levels


def pooled(rows: list[Result]) -> Score | None:
    """Accuracy over all questions of these subjects, in percent with its Wilson interval."""
    asked = sum(row.samples for row in rows)
    if not asked:
        return None
    right = sum(round((row.accuracy or 0.0) * row.samples) for row in rows)
    low, high = wilson(right, asked)
    return Score(100 * right / asked, 100 * low, 100 * high, asked)


def line(model: Evaluated, columns: list[str]) -> Row:
    """Eight columns, the mean of the eight, and all questions."""
    scores = []
    for number, name in enumerate(columns):
        of: Callable[[Result], str | None] = (lambda r: r.category) if number < CATEGORIES else (lambda r: r.level)
        scores.append(pooled([row for row in model.rows if of(row) == name]))
    there = [score for score in scores if score]
    # the columns share their questions, so the mean of them gets no interval
    average = mean([Score(score.value) for score in there]) if len(there) == len(columns) else None
    subjects = len({row.task for row in model.rows})
    note = f"{subjects} of 57 subjects" if subjects < 57 else ""
    return Row(model.name, [*map(cell, scores), cell(average), cell(pooled(model.rows))], note=note)


def section(runs: list[Run], book: dict[str, Any]) -> Section:
    """The MMLU section."""
    table = book["lm2"]["mmlu"]
    rows = [
        Row(model["name"], [*(Cell(f"{v:.1f}") for v in model["cells"]), Cell(f"{model['average']:.1f}"), Cell("–")], True)
        for model in table["models"]
    ]
    rows += [line(model, table["columns"]) for model in evaluated(runs, PREFIX)]
    head = ["model", *table["columns"], "mean of the eight", "all questions"]
    missing = [
        Missing(
            f"{run.name} has no MMLU results",
            f"python launchers/evaluate.py --checkpoint {run.place} --tasks mmlu --mmlu DIR --output {run.output}",
        )
        for run in runs
        if not evaluated([run], PREFIX)
    ]
    paragraphs = [
        "Accuracy in percent by log-likelihood of the four letters; 25 is chance. Below ours, 95 % Wilson intervals over the "
        "questions. Published: " + book["lm2"]["citation"] + "."
    ]
    caption = "Table 2. MMLU by category and by level"
    return Section("MMLU", paragraphs, [Table(caption, head, each(rows))], notes=table["notes"], missing=missing)
