"""Show an interpretation as HTML: a section of the report, and a page of its own with pictures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from data_prep.files import write_text
from evaluation.interpret.analysis import Analysis
from evaluation.interpret.plots import ablated_name, figures, shown
from evaluation.report.figure import png, svg
from evaluation.report.rendering import render
from model.memory.registry import captions

MOMENTS = {
    True: ("the prompt's last tokens, had they read what its first segment had left", "the same tokens' real reads"),
    False: ("the first segment's tokens, which read the initial memory", "the prompt's last tokens"),
}


def section(analysis: Analysis, name: str, brief: bool = False) -> Markup:
    """Return the section's HTML with inline SVG; name: makes figures' ids differ between models on one page.

    brief: show only the block that loses most when its memory is ablated (the last one where blocks share a bank).
    """
    blocks = len(analysis.layers)
    if brief:
        main = _main_block(analysis)
        kept = [row for row in analysis.ablated if "slot" not in row or row.get("layer") in (None, main["layer"])]
        analysis = replace(analysis, layers=[main], ablated=kept)
    pictures = {
        file: {"caption": caption, "svg": Markup(svg(figure, f"{name}-{file}"))}
        for file, caption, figure in figures(analysis)
    }
    through_time = "over_time" in analysis.layers[0]
    return Markup(
        render(
            "interpretation.html.j2",
            analysis=analysis,
            pictures=pictures,
            reads=captions().get(analysis.kind, ""),
            moments=MOMENTS[through_time],
            through_time=through_time,
            shown=shown,
            ablated_name=ablated_name,
            blocks=blocks,
        )
    )


def _main_block(analysis: Analysis) -> dict[str, Any]:
    losses = {row["layer"]: row["loss"] for row in analysis.ablated if row["what"] == "block"}
    return max(analysis.layers, key=lambda layer: (losses.get(layer["layer"], 0.0), layer["layer"]))


def write_page(analysis: Analysis, folder: Path) -> None:
    """Write `folder`/index.html and a PNG of every figure, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, _, figure in figures(analysis):
        png(figure, folder / f"{file}.png")
    values: dict[str, Any] = {"title": f"The memory of {analysis.run}", "body": section(analysis, analysis.run)}
    write_text(folder / "index.html", render("plain.html.j2", **values))
