"""The page: every section put together, as one HTML file and as Markdown with its pictures."""

from datetime import datetime, timezone
from pathlib import Path

from markupsafe import Markup

from evaluation.interpret.page import section as interpretation
from evaluation.report import babilong, curves, explicit, mmlu
from evaluation.report.figure import png, svg
from evaluation.report.parts import Section, lacking
from evaluation.report.rendering import anchor, render
from evaluation.report.sources import Run, load_runs, published
from training.errors import output_folder

TITLE = "Runs beside what was published"


def sections(runs: list[Run], scorer: str) -> list[Section]:
    """In the order they are read."""
    book = published()
    found = [
        babilong.section(runs, book, scorer),
        mmlu.section(runs, book),
        curves.ablation_section(runs, book),
        _interpretations(runs),
        curves.loss_section(runs),
        curves.position_section(runs),
        curves.speed_section(runs),
        explicit.section(runs, book),
    ]
    return [section for section in found if section]


def _interpretations(runs: list[Run]) -> Section:
    """Figure 6."""
    inner = [(run.name, interpretation(run.interpretation, run.name, brief=True)) for run in runs if run.interpretation]
    without = [run for run in runs if not run.interpretation and curves.blocks(run) not in ("none", "unknown")]
    command = "python launchers/interpret.py --checkpoint {run} --prompt-file FILE"
    missing = lacking("look into the memory", without, command)
    text = (
        "What the tokens of a prompt read from memory before and after it was updated (Figure 6 of the LM2 paper, "
        "whose heatmaps are pictures without numbers), and what reads returned."
    )
    return Section("What the memory does", [text], missing=missing, inner=inner)


def write_report(paths: list[Path], folder: Path, scorer: str, command: str) -> list[Path]:
    """Write index.html, report.md and the Markdown's pictures into `folder`; returns the two pages."""
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
        aside = folder / f"{name}.tmp"
        aside.write_text(text, encoding="utf-8")
        pages.append(aside.replace(folder / name))
    return pages
