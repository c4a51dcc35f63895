"""The section of explicit memory (Memory³), for results that have its rows."""

from math import exp
from typing import Any

from evaluation.report.parts import Cell, Row, Score, Section, Table, cell, each
from evaluation.report.sources import Evaluated, Run, evaluated
from model.explicit.cost import knowledge_costs

MODES = ("closed book", "text in prompt", "explicit memory")
LOSSES = ("without memory", "explicit memory")


def section(runs: list[Run], book: dict[str, Any]) -> Section | None:
    """Return the section: questions in three modes, perplexity with and without, costs, and published numbers.

    It shows the tasks QUESTIONS/MODE and perplexity/MODE; None when no result has one.
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
    if costs := [_costs(run) for run in runs if run.config is not None and run.config.model.explicit is not None]:
        head = ["shape", "in the parameters", "explicit memory", "text in the prompt", "memory costs least for"]
        note = "GFLOP for a reference that is used n times, by the paper's formulas (Memory³, sections 2 and A)."
        tables.append(Table("What knowing a text costs", head, each(costs), note))
    published = [Row(one["what"], [Cell(one["value"])], published=True) for one in book["memory3"]["rows"]]
    tables.append(Table("Published", ["what", "value"], each(published), book["memory3"]["citation"]))
    return Section("Explicit memory", ["Accuracies in percent, with 95 % Wilson intervals below."], tables)


def _answers(name: str, models: list[Evaluated]) -> Table:
    """Return a table with a row for each model and scorer."""
    rows = []
    for model in models:
        by = {(row.scorer, row.task): row for row in model.rows}
        for scorer in dict.fromkeys(row.scorer for row in model.rows):
            results = [by.get((scorer, f"{name}/{mode}")) for mode in MODES]
            cells = [cell(Score.of(row) if row else None) for row in results]
            rows.append(Row(model.name, [Cell(scorer), *cells]))
    return Table(f"{name}: accuracy", ["model", "scorer", *MODES], each(rows))


def _costs(run: Run) -> Row:
    assert run.config is not None
    cost = knowledge_costs(run.config.model)
    first, last = cost.crossover
    forms = (
        f"{cost.implicit_write / 1e9:.3g}",
        f"{cost.explicit_write / 1e9:.3g} + {cost.explicit_read / 1e9:.2g} n",
        f"{cost.rag_read / 1e9:.3g} n",
        f"{first:.3g} to {last:,.0f} uses" if first < last else "no number of uses",
    )
    return Row(run.name, [Cell(text) for text in forms])


def _losses(model: Evaluated) -> Row:
    values = {row.task.rpartition("/")[2]: row.value for row in model.rows}
    without, having = (values.get(name) for name in LOSSES)
    cells = [Cell("–") if v is None else Cell(f"{exp(v):.2f}", f"{v:.3f}") for v in (without, having)]
    change = Cell("–") if without is None or having is None else Cell(f"{having - without:+.3f}")
    return Row(model.name, [*cells, change])
