"""Explicit memory (Memory³): shown when results hold its rows, `memory3/…`."""

from typing import Any

from evaluation.report.parts import Cell, Row, Score, Section, Table, cell, each
from evaluation.report.sources import Run, evaluated

PREFIX = "memory3/"


def section(runs: list[Run], book: dict[str, Any]) -> Section | None:
    """Accuracy closed book, with the text in the prompt and with explicit memory; losses; the cost model; None when no
    result has rows of tasks that begin with memory3/.

    A row's task is memory3/WHAT: one with an accuracy is shown with its interval, one with a value as it is.
    """
    models = evaluated(runs, PREFIX)
    if not models:
        return None
    names = list(dict.fromkeys(row.task for model in models for row in model.rows))
    rows = []
    for model in models:
        by = {row.task: row for row in model.rows}
        cells = []
        for name in names:
            row = by.get(name)
            if row is not None and row.accuracy is not None:
                low, high = (None if x is None else 100 * x for x in (row.low, row.high))
                cells.append(cell(Score(100 * row.accuracy, low, high, row.samples)))
            else:
                cells.append(
                    Cell("–" if row is None or row.value is None else f"{row.value:.4g}", row.scorer if row else "")
                )
        rows.append(Row(model.name, cells))
    published = [Row(one["what"], [Cell(one["value"])], published=True) for one in book["memory3"]["rows"]]
    tables = [
        Table("Ours", ["model", *(name.removeprefix(PREFIX) for name in names)], each(rows)),
        Table(f"Published: {book['memory3']['citation']}", ["what", "value"], each(published)),
    ]
    text = "Accuracies in percent with 95 % intervals below; other numbers in the unit below them."
    return Section("Explicit memory", [text], tables)
