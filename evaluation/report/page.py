"""The page: all sections in one HTML file, and in Markdown with pictures."""

from datetime import datetime, timezone
from pathlib import Path

from markupsafe import Markup

from data_prep.files import write_text
from evaluation.interpret.page import section as interpretation
from evaluation.report import babilong, curves, explicit, mmlu
from evaluation.report.figure import png, svg
from evaluation.report.parts import Section, lacking
from evaluation.report.rendering import anchor, render
from evaluation.report.sources import Run, load_runs, published
from training.errors import output_folder

TITLE = "Runs beside what was published"


def sections(runs: list[Run], scorer: str) -> list[Section]:
    """Return the sections in the order of the page."""
    book = published()
    every = [
        babilong.section(runs, book, scorer),
        mmlu.section(runs, book),
        curves.ablation_section(runs, book),
        _interpretations(runs),
        curves.loss_section(runs),
        curves.position_section(runs),
        curves.speed_section(runs),
        explicit.section(runs, book),
    ]
    return [section for section in every if section]


def _interpretations(runs: list[Run]) -> Section:
    """Return the section of Figure 6, with every run's interpretation."""
    inner = [(run.name, interpretation(run.interpretation, run.name, brief=True)) for run in runs if run.interpretation]
    without = [run for run in runs if not run.interpretation and curves.blocks(run) not in ("none", "unknown")]
    command = "python launchers/interpret.py --checkpoint {run} --prompt-file FILE"
    missing = lacking("interpretation of the memory", without, command)
    text = (
        "What the tokens of a prompt read from memory before and after it was updated (Figure 6 of the LM2 paper, "
        "whose heatmaps are pictures without numbers), and what reads returned."
    )
    return Section("What the memory does", [text], missing=missing, inner=inner)


def write_report(paths: list[Path], folder: Path, scorer: str, command: str) -> list[Path]:
    """Write index.html, report.md and the Markdown's pictures into `folder`, and return the two pages' paths."""
    runs = load_runs(paths)
    parts = sections(runs, scorer)
    about = {
        "title": TITLE,
        "sections": parts,
        "runs": runs,
        "blocks": curves.blocks,
        "command": command,
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "anchor": anchor,
    }
    drawn = {picture.file: Markup(svg(picture.figure, picture.file)) for part in parts for picture in part.pictures}
    html = render("page.html.j2", **about, svg=drawn)
    markdown = render("page.md.j2", **about)
    output_folder(folder, "--output")
    for part in parts:
        for picture in part.pictures:
            png(picture.figure, folder / f"{picture.file}.png")
    pages = []
    for name, text in (("index.html", html), ("report.md", markdown)):
        write_text(folder / name, text)
        pages.append(folder / name)
    return pages
