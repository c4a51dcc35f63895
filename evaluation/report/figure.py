"""Figures for light and dark pages: an SVG, whose text has the page's colour, or a PNG."""

import io
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from data_prep.files import replacing

INK = "#333333"  # becomes the page's text colour in an SVG
GREY, MARKERS = "#8f96a0", "osv^D*Px"  # of published models: one colour, and a marker for each
COLOURS = ("#4c8bd6", "#e0703a", "#3fa66b", "#b565c9", "#c9a227", "#2aa7b5", "#d1495b", "#8b6f4e")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; width and height in inches."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def tidy(axes: Axes) -> None:
    """Style the axes: grid and ticks behind the data, no frame at the top and right."""
    axes.patch.set_alpha(0)
    axes.grid(True, color="#8a8a8a", linewidth=0.4, alpha=0.4)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def svg(figure: Figure, name: str) -> str:
    """Return an `<svg>` element for a page; name: makes its ids differ from those of other figures on the page."""
    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = text.replace(INK, "currentColor").replace("font: ", "font-family: inherit; font: ", 0)
    head, rest = text.split(">", 1)
    return f'<svg class="figure" role="img" {head[4:]}>{rest}'


def png(figure: Figure, path: Path) -> None:
    """Write `path` atomically, on a white background."""
    figure.patch.set_alpha(1)
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
    figure.patch.set_alpha(0)
