"""Explicit memory (Memory³): shown when results hold its rows."""

from math import exp
from typing import Any

from evaluation.report.parts import Cell, Row, Score, Section, Table, cell, each
from evaluation.report.sources import Evaluated, Run, evaluated

MODES = ("closed book", "text in prompt", "explicit memory")
LOSSES = ("without memory", "explicit memory")


def section(runs: list[Run], book: dict[str, Any]) -> Section | None:
    """Questions in the three modes, perplexity with and without, the published numbers and cost model.

    Of tasks QUESTIONS/MODE and perplexity/MODE; None when no result has one.
    """
    asked = evaluated(runs, rf"(?!perplexity/).*/({'|'.join(MODES)})")
    measured = evaluated(runs, f"perplexity/({'|'.join(LOSSES)})")
    if not asked and not measured:
        return None
    tables = [
        _answers(name, asked) for name in dict.fromkeys(row.task.rpartition("/")[0] for m in asked for row in m.rows)
    ]
    if measured:
        head = ["model", *LOSSES, "change, nats per token"]
        note = "Over the same texts; below, nats per token."
        tables.append(Table("Perplexity with and without explicit memory", head, each(map(_losses, measured)), note))
    published = [Row(one["what"], [Cell(one["value"])], published=True) for one in book["memory3"]["rows"]]
    tables.append(Table("Published", ["what", "value"], each(published), book["memory3"]["citation"]))
    return Section("Explicit memory", ["Accuracies in percent, with 95 % Wilson intervals below."], tables)


def _answers(name: str, models: list[Evaluated]) -> Table:
    """A row a model and scorer."""
    rows = []
    for model in models:
        by = {(row.scorer, row.task): row for row in model.rows}
        for scorer in dict.fromkeys(row.scorer for row in model.rows):
            found = [by.get((scorer, f"{name}/{mode}")) for mode in MODES]
            cells = [cell(Score.of(row) if row else None) for row in found]
            rows.append(Row(model.name, [Cell(scorer), *cells]))
    return Table(f"{name}: accuracy", ["model", "scorer", *MODES], each(rows))


def _losses(model: Evaluated) -> Row:
    values = {row.task.rpartition("/")[2]: row.value for row in model.rows}
    without, having = (values.get(name) for name in LOSSES)
    cells = [Cell("–") if v is None else Cell(f"{exp(v):.2f}", f"{v:.3f}") for v in (without, having)]
    change = Cell("–") if without is None or having is None else Cell(f"{having - without:+.3f}")
    return Row(model.name, [*cells, change])
