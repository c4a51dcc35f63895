"""Figures that read on white and on black: drawn once, as SVG text that takes the page's colour, or as a PNG."""

import io
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#333333"  # becomes the page's text colour in an SVG
GREY, MARKERS = "#8f96a0", "osv^D*Px"  # what was published: one colour, a marker each
COLOURS = ("#4c8bd6", "#e0703a", "#3fa66b", "#b565c9", "#c9a227", "#2aa7b5", "#d1495b", "#8b6f4e")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def tidy(axes: Axes) -> None:
    """Grid and ticks that stay behind the data."""
    axes.patch.set_alpha(0)
    axes.grid(True, color="#8a8a8a", linewidth=0.4, alpha=0.4)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def svg(figure: Figure, name: str) -> str:
    """An `<svg>` element to stand in a page; `name` keeps its ids apart from other figures' on the page."""
    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = text.replace(INK, "currentColor").replace("font: ", "font-family: inherit; font: ", 0)
    head, rest = text.split(">", 1)
    return f'<svg class="figure" role="img" {head[4:]}>{rest}'


def png(figure: Figure, path: Path) -> None:
    """Write `path` on a white ground; the old picture is there until the new one is whole."""
    figure.patch.set_alpha(1)
    aside = path.with_name(path.name + ".tmp")
    FigureCanvasAgg(figure).print_png(aside)
    figure.patch.set_alpha(0)
    aside.replace(path)
