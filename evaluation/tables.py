"""Print results as tables on a terminal."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep.files import lines_of
from evaluation.babilong.lengths import tokens_of
from evaluation.babilong.scorers import SCORERS, agreement
from evaluation.babilong.tasks import TASKS
from evaluation.cells import HARNESS, QUESTIONS
from evaluation.mmlu import averages
from evaluation.results import Results, Row


def show(console: Console, results: Results, answers: Sequence[Path]) -> None:
    """Print every table that has rows, and how BABILong's scorers agree on the answers in these files."""
    facts = results.model
    console.print(
        f"\n{facts.name}: {facts.kind}, {facts.parameters:,} parameters, {results.tokens:,} tokens, {results.device}"
    )
    babilong = [row for row in results.rows if row.task.startswith("babilong/")]
    if babilong:
        _show_babilong(console, results, babilong, answers)
    if mmlu := averages(results.rows):
        table = Table("MMLU", "questions", "accuracy, %", "95 % interval")
        for row in mmlu:
            table.add_row(
                row.task, f"{row.samples:,}", _percent(row.accuracy), f"{_percent(row.low)}–{_percent(row.high)}"
            )
        console.print(table)
    if perplexity := [row for row in results.rows if row.task == "perplexity"]:
        table = Table("first tokens of a text", "nats a token", "texts")
        for row in sorted(perplexity, key=lambda row: row.tokens or 0):
            table.add_row(str(row.length), f"{row.value:.4f}", str(row.samples))
        console.print(table)
    if others := [row for row in results.rows if row.task.startswith((HARNESS, f"{QUESTIONS}/", "perplexity/"))]:
        table = Table("", "samples", "measure", "value", "95 % interval")
        for row in others:
            share = row.accuracy is not None
            interval = f"{_percent(row.low)}–{_percent(row.high)}" if share else ""
            value = f"{_percent(row.accuracy)} %" if share else f"{row.value:.4f}"
            table.add_row(row.task, f"{row.samples:,}", row.scorer, value, interval)
        console.print(table)


def _show_babilong(console: Console, results: Results, rows: list[Row], answers: Sequence[Path]) -> None:
    origin = results.data.get("babilong", {})
    source = f"facts: {origin.get('facts')}, background: {origin.get('background')}"
    lengths = sorted({str(row.length) for row in rows}, key=tokens_of)
    by_scorer = {name: {row.cell: row for row in rows if row.scorer == name} for name in SCORERS}
    values = [{cell: row.accuracy for cell, row in by_cell.items()} for by_cell in by_scorer.values()]
    if all(value == values[0] for value in values):
        by_scorer = {f"{', '.join(SCORERS)} alike": by_scorer["exact"]}
    for scorer, by_cell in by_scorer.items():
        console.print(f"BABILong, % right by {scorer} (95 % interval); {source}", soft_wrap=True)
        table = Table("", *lengths)
        for task in TASKS:
            cells = [by_cell.get((f"babilong/{task}", length)) for length in lengths]
            if any(cells):
                table.add_row(task, *(_cell(row) for row in cells))
        means = []
        for length in lengths:
            column = [row.accuracy or 0 for (_, its), row in by_cell.items() if its == length]
            means.append(_percent(sum(column) / len(column)) if column else "")
        table.add_row("mean", *means, style="bold")
        console.print(table)
    files = [path for path in answers if path.name.startswith("babilong") and path.is_file()]
    judged = [list(json.loads(line)["right"].values()) for path in files for line in _lines(path)]
    if judged:
        console.print(f"how the scorers agree on {len(judged):,} answers:\n{agreement(judged)}\n")


def _lines(path: Path) -> list[str]:
    return lines_of(path.read_text(encoding="utf-8"))


def _cell(row: Row | None) -> str:
    """Return the percentage and its interval, or that there is no sample."""
    if row is None:
        return ""
    if not row.samples:
        return "no sample"
    return f"{_percent(row.accuracy)} ({_percent(row.low)}–{_percent(row.high)})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}"
