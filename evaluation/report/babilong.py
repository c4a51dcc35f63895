"""BABILong: Table 1, Table 3, Figure 3 and the comparison with fine-tuned recurrent models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.babilong.lengths import tokens_of
from evaluation.babilong.tasks import TASKS
from evaluation.report.figure import COLOURS, GREY, INK, MARKERS, new_figure, tidy
from evaluation.report.parts import Cell, Group, Picture, Row, Score, Section, Table, cell, each, lacking, mean
from evaluation.report.sources import Evaluated, Run, evaluated

PREFIX = "babilong/"
TASKS_HERE = PREFIX + ".*"
NAMES = list(TASKS)  # qa1 … qa10
SHORT = ("0k", "1k", "2k", "4k")
AS_PRINTED = ("8k", "16k", "32k", "64k")  # lengths whose mean is the published “AVG ≥ 8K”
AS_SAID = (*AS_PRINTED, "128k")  # lengths that its caption names
Cells = dict[str, dict[str, Score]]  # length -> task -> score


@dataclass(frozen=True)
class Line:
    """One model's accuracies."""

    name: str
    cells: Cells
    published: bool = False
    badges: tuple[str, ...] = ()


def our_lines(runs: list[Run], scorer: str) -> list[Line]:
    """Return the table's lines of the evaluated `runs`, scored by `scorer`."""
    return [_line(model, scorer) for model in evaluated(runs, TASKS_HERE)]


def _line(model: Evaluated, scorer: str) -> Line:
    cells: Cells = {}
    for row in model.rows:
        score = Score.of(row)
        if row.scorer == scorer and score and row.length:
            cells.setdefault(row.length, {})[row.task.removeprefix(PREFIX)] = score
    badges = [row.mode for row in model.rows[:1] if row.mode == "finetuned"]
    return Line(model.name, cells, badges=(*badges, *(["simulated facts"] if model.simulated else [])))


def published_lines(table: dict[str, Any]) -> list[Line]:
    """Return the table's lines of the models in `published.yaml`."""
    return [
        Line(
            model["name"],
            {
                length: {task: Score(float(v)) for task, v in zip(NAMES, row, strict=True)}
                for length, row in model["cells"].items()
            },
            published=True,
        )
        for model in table["models"]
    ]


def row_of(line: Line, lengths: Sequence[str]) -> Row | None:
    """Return each task's mean over these lengths and the mean of the tasks; None when the line has no such length."""
    there = [length for length in lengths if length in line.cells]
    if not there:
        return None
    by_task = [mean([line.cells[n][task] for n in there if task in line.cells[n]]) for task in NAMES]
    scores = [score for score in by_task if score is not None]
    notes = [f"{', '.join(there).upper()} only"] if len(there) < len(lengths) else []
    notes += [f"mean of {len(scores)} tasks"] if len(scores) < len(NAMES) else []
    return Row(line.name, [*map(cell, by_task), cell(mean(scores))], line.published, line.badges, "; ".join(notes))


def _group(title: str, lines: list[Line], lengths: Sequence[str]) -> Group:
    return Group(title, [row for line in lines if (row := row_of(line, lengths))])


def section(runs: list[Run], book: dict[str, Any], scorer: str) -> Section:
    """Return the BABILong section."""
    published = book["lm2_paper"]["babilong"]
    ours, theirs = our_lines(runs, scorer), published_lines(published)
    lines = [*theirs, *ours]
    head = ["model", *NAMES, "mean"]
    table1 = [_group(length.upper(), lines, [length]) for length in SHORT]
    table1 += [
        _group("≥ 8K as the paper forms it: mean of 8K, 16K, 32K, 64K", lines, AS_PRINTED),
        _group("≥ 8K as its caption says: mean of 8K, 16K, 32K, 64K, 128K", lines, AS_SAID),
    ]
    lengths = sorted({n for line in lines for n in line.cells}, key=tokens_of)
    table3 = [_group(length.upper(), lines, [length]) for length in lengths]
    paragraphs = [
        f"Accuracy in percent. Ours are by the {scorer} scorer, with 95 % intervals below (Wilson; those of means are "
        "combined in quadrature). Published: "
        + book["lm2_paper"]["citation"]
        + ", without intervals; whole numbers suggest 100 samples in a cell, which is about ±10.",
    ]
    counts = sorted({s.samples or 0 for line in ours for row in line.cells.values() for s in row.values()})
    if counts:
        paragraphs.append(f"Samples in a cell of ours: {', '.join(f'{n:,}' for n in counts)}.")
    if any("simulated facts" in line.badges for line in ours):
        paragraphs.append(
            "SIMULATED FACTS: rows with this mark were measured on stories of our own simulator, not on bAbI's. They "
            "compare our models with each other, not with published numbers."
        )
    tables = [
        Table("Table 1. Task × length × model", head, [g for g in table1 if g.rows]),
        Table("Table 3. All lengths", head, [g for g in table3 if g.rows]),
        *_scorers(runs),
        *_finetuned(ours, book["finetuned"]),
    ]
    pictures = [*_radar(ours, theirs), *_by_length(ours, theirs)]
    missing = lacking(
        "BABILong results",
        [run for run in runs if not evaluated([run], TASKS_HERE)],
        "python launchers/evaluate.py --checkpoint {run} --tasks babilong --babi FOLDER --background FOLDER "
        "--lengths 0k,1k,2k,4k,8k,16k,32k,64k,128k --samples 100",
    )
    return Section("BABILong", paragraphs, tables, pictures, published["notes"], missing)


def _scorers(runs: list[Run]) -> list[Table]:
    """Return a table of the mean accuracy by each scorer, over the cells that all scorers judged."""
    rows = []
    for model in evaluated(runs, TASKS_HERE):
        scores: dict[tuple[str, str | None], dict[str, float]] = {}
        for row in model.rows:
            if row.accuracy is not None:
                scores.setdefault((row.task, row.length), {})[row.scorer] = 100 * row.accuracy
        names = ("official", "exact", "corrected")
        full = [by for by in scores.values() if all(name in by for name in names)]
        if full:
            means = [Cell(f"{sum(by[name] for by in full) / len(full):.1f}") for name in names]
            rows.append(Row(model.name, [*means, Cell(str(len(full)))]))
    if not rows:
        return []
    note = (
        "Mean of all cells that every scorer judged. Official is the benchmark's own rule, which never accepts “none” "
        "in qa7, because “one” is a part of it. Exact accepts only the answer itself. Corrected is the official rule "
        "applied to words."
    )
    return [Table("Our models by scorer", ["model", "official", "exact", "corrected", "cells"], each(rows), note)]


def _finetuned(ours: list[Line], book: dict[str, Any]) -> list[Table]:
    """Return a table of the means of qa1 to qa5, of our fine-tuned models and published ones."""
    mine = [line for line in ours if "finetuned" in line.badges]
    if not mine:
        return []
    lengths = sorted({*book["lengths"], *(n for line in mine for n in line.cells)}, key=tokens_of)
    rows = []
    for model in book["models"]:
        known = dict(zip(book["lengths"], model["cells"], strict=True))
        values = [known.get(n) for n in lengths]
        rows.append(Row(model["name"], [Cell("–" if v is None else f"{v:.1f}") for v in values], published=True))
    for line in mine:
        scores = [[line.cells.get(n, {}).get(task) for task in NAMES[:5]] for n in lengths]
        cells = [cell(mean([s for s in five if s]) if all(five) else None) for five in scores]
        rows.append(Row(line.name, cells, badges=line.badges))
    note = f"Models trained on the benchmark itself, on one task or on all. Published: {book['citation']}"
    return [Table("Fine-tuned, mean of qa1 to qa5", ["model", *(n.upper() for n in lengths)], each(rows), note)]


def capabilities(line: Line, tasks: Sequence[str], lengths: Sequence[str]) -> dict[str, float]:
    """Return the mean accuracy of each ability over these tasks and lengths, all of which the line must have."""
    values: dict[str, list[float]] = {}
    for task in tasks:
        values.setdefault(TASKS[task].capability, []).extend(line.cells[n][task].value for n in lengths)
    return {name: sum(of_name) / len(of_name) for name, of_name in values.items()}


def _style(line: Line, number: int) -> dict[str, Any]:
    """Return the style of a line: colours for our models, grey for published ones."""
    if line.published:
        marker = MARKERS[number % len(MARKERS)]
        return {"color": GREY, "linestyle": "--", "linewidth": 1, "marker": marker, "markersize": 4}
    return {"color": COLOURS[number % len(COLOURS)], "linewidth": 2, "marker": "."}


def _radar(ours: list[Line], theirs: list[Line]) -> list[Picture]:
    """Draw Figure 3 over the tasks and lengths that all our lines have, with the published lines that have them too."""
    shown = ours or [line for line in theirs if "128k" in line.cells]
    lengths = [n for n in (*SHORT, *AS_SAID) if all(n in line.cells for line in shown)]
    tasks = [t for t in NAMES if lengths and all(t in line.cells[n] for line in shown for n in lengths)]
    axes_names = list(dict.fromkeys(TASKS[t].capability for t in tasks))
    if len(axes_names) < 3:
        return []
    theirs_too = [line for line in theirs if all(n in line.cells for n in lengths)]
    figure = new_figure(8.6, 4.6)
    axes = figure.add_subplot(projection="polar")
    axes.patch.set_alpha(0)
    axes.grid(True, color="#8a8a8a", linewidth=0.4, alpha=0.5)
    axes.spines["polar"].set_color("#8a8a8a")
    axes.tick_params(axis="y", labelsize=7, colors=INK)
    angles = np.linspace(0, 2 * np.pi, len(axes_names), endpoint=False)
    for number, line in enumerate([*ours, *theirs_too]):
        by = capabilities(line, tasks, lengths)
        values = [by[name] for name in axes_names]
        closed = ([*angles, angles[0]], [*values, values[0]])
        label = f"{line.name}{' (published)' if line.published else ''}"
        axes.plot(*closed, label=label, **_style(line, number))
    axes.set_xticks(angles, [name.replace(" and ", " and\n").replace(" ", "\n", 1) for name in axes_names])
    axes.set_ylim(0, 100)
    axes.tick_params(axis="x", labelsize=8, colors=INK, pad=16)
    axes.legend(loc="center left", bbox_to_anchor=(1.3, 0.5), fontsize=8, frameon=False, labelcolor=INK)
    over = f"{', '.join(tasks)} at {', '.join(lengths).upper()}"
    return [Picture("figure-3", f"Figure 3. Accuracy by capability, mean over {over}; dashed: published", figure, True)]


def _by_length(ours: list[Line], theirs: list[Line]) -> list[Picture]:
    """Draw the mean over the tasks that all our lines have, by length."""
    if not ours:
        return []
    tasks = [t for t in NAMES if all(t in row for line in ours for row in line.cells.values())]
    if not tasks:
        return []
    figure = new_figure(9, 3.6)
    axes = figure.subplots()
    tidy(axes)
    lengths = sorted({n for line in (*theirs, *ours) for n in line.cells}, key=tokens_of)
    for number, line in enumerate([*ours, *theirs]):
        there = [n for n in lengths if n in line.cells]
        scores = [mean([line.cells[n][t] for t in tasks]) for n in there]
        known = [(lengths.index(n), s) for n, s in zip(there, scores, strict=True) if s]
        style = _style(line, number)
        if all(s.low is not None for _, s in known):
            edges = [[max(0.0, s.value - (s.low or 0)) for _, s in known], [(s.high or 0) - s.value for _, s in known]]
            style |= {"yerr": edges, "capsize": 2}
        label = f"{line.name}{' (published)' if line.published else ''}"
        values = [s.value for _, s in known]
        axes.errorbar([x for x, _ in known], values, label=label, **style)
    axes.set_xticks(range(len(lengths)), [n.upper() for n in lengths])
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy (%)", color=INK)
    axes.set_xlabel("length", color=INK)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return [Picture("by-length", f"Mean of {', '.join(tasks)} by length; dashed: published", figure)]
