"""The section of MMLU: LM2's Table 2, by category and by level."""

from typing import Any

from evaluation.mmlu import SUBJECTS, averages
from evaluation.report.parts import Cell, Row, Score, Section, Table, cell, each, lacking, mean
from evaluation.report.sources import Evaluated, Run, evaluated

SUBJECTS_HERE = "mmlu/.*"


def line(model: Evaluated, columns: list[str]) -> Row:
    """Return a row: eight columns averaged over their questions, the mean of the eight, and all questions."""
    by_name = {row.task: Score.of(row, mean=True) for row in averages(model.rows)}
    scores = [by_name.get(name) for name in columns]
    there = [score for score in scores if score]
    # the columns share questions and are not independent, so their mean has no interval
    average = mean([Score(score.value) for score in there]) if len(there) == len(columns) else None
    subjects = len({row.task for row in model.rows})
    note = f"{sum(row.samples for row in model.rows):,} questions"
    note += f" of {subjects} of {len(SUBJECTS)} subjects" if subjects < len(SUBJECTS) else ""
    return Row(model.name, [*map(cell, scores), cell(average), cell(by_name.get("Average"))], note=note)


def section(runs: list[Run], book: dict[str, Any]) -> Section:
    """Return the MMLU section."""
    table = book["lm2_paper"]["mmlu"]
    rows = [
        Row(
            model["name"],
            [*(Cell(f"{v:.1f}") for v in model["cells"]), Cell(f"{model['average']:.1f}"), Cell("–")],
            True,
        )
        for model in table["models"]
    ]
    rows += [line(model, table["columns"]) for model in evaluated(runs, SUBJECTS_HERE)]
    head = ["model", *table["columns"], "mean of the eight", "all questions"]
    missing = lacking(
        "MMLU results",
        [run for run in runs if not evaluated([run], SUBJECTS_HERE)],
        "python launchers/evaluate.py --checkpoint {run} --tasks mmlu --mmlu FOLDER",
    )
    paragraphs = [
        "Accuracy in percent by log-likelihood of the four letters; 25 is chance. Below ours, 95 % Wilson intervals "
        "over the questions. Published: " + book["lm2_paper"]["citation"] + "."
    ]
    caption = "Table 2. MMLU by category and by level"
    return Section("MMLU", paragraphs, [Table(caption, head, each(rows))], notes=table["notes"], missing=missing)
