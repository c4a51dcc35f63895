"""The plot of a run: loss over tokens with the phases, and below it learning rate and gradient norm."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from data_prep.files import replacing
from training.monitoring.records import read_metrics
from training.monitoring.units import short

TRAIN, VALID, RATE, NORM, INK, GRID = "#2f6db3", "#d1495b", "#3b7d4f", "#8a6fb0", "#333333", "#e3e3e3"
SPANS = ("#f1f3f6", "#fdf3e1", "#eaf5ee", "#f6ecf5")
MAX_POINTS = 4000  # points of a curve; the picture has fewer pixels
Floats = np.ndarray[Any, np.dtype[np.float64]]


def plot_loss(metrics_path: Path, out: Path) -> None:
    """Draw `metrics.jsonl` as a PNG, which replaces the file at `out` once it is complete.

    A run without steps gives an empty frame. The title is the name of the folder of `metrics_path`.
    """
    steps, evaluations = read_metrics(metrics_path)
    figure = Figure(figsize=(10, 6.5), dpi=130, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    figure.suptitle(metrics_path.absolute().parent.name, fontsize=13, fontweight="bold", color=INK, parse_math=False)

    phases = _phases(steps)
    _draw_phases(top, bottom, steps, phases)
    _draw_loss(top, steps, phases)
    _draw_evaluations(top, evaluations)
    _limit_loss(top, steps, evaluations)
    _draw_schedule(bottom, steps)
    top.set_ylabel("loss (nats per token)", color=INK)
    last = max([line["tokens"] for line in (*steps, *evaluations)], default=1)
    bottom.set_xlim(0, 1.01 * max(last, 1))
    bottom.set_xlabel("tokens", color=INK)
    bottom.xaxis.set_major_formatter(FuncFormatter(_tokens_label))
    if top.get_legend_handles_labels()[1]:
        top.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    with replacing(out) as aside:
        canvas.print_png(aside)


def _draw_phases(top: Axes, bottom: Axes, steps: Sequence[dict[str, Any]], phases: list[slice]) -> None:
    for axes in (top, bottom):
        axes.grid(True, color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    for number, phase in enumerate(phases):
        # A phase's span begins at the last step of the phase before, so that there is no gap between them.
        begin = steps[phase.start - 1]["tokens"] if phase.start else 0
        end = steps[phase.stop - 1]["tokens"]
        for axes in (top, bottom):
            axes.axvspan(begin, end, color=SPANS[number % len(SPANS)], zorder=0, linewidth=0)
        name = steps[phase.start]["phase"]
        top.annotate(
            name, (begin, 1), (6, -6), xycoords=top.get_xaxis_transform(), textcoords="offset points",
            va="top", fontsize=10, fontstyle="italic", color="#555555", parse_math=False,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": SPANS[number % len(SPANS)], "edgecolor": "none"},
        )  # fmt: skip


def _draw_loss(axes: Axes, steps: Sequence[dict[str, Any]], phases: list[slice]) -> None:
    tokens, loss = _column(steps, "tokens"), _column(steps, "loss")
    width = max(1, len(steps) // 50)
    if width > 1:
        thin = slice(None, None, max(1, len(steps) // MAX_POINTS))
        axes.plot(tokens[thin], loss[thin], color=TRAIN, linewidth=0.6, alpha=0.35)
    for phase in phases:
        # Phases are smoothed separately, because the loss may jump at a boundary.
        label = "training" if phase.start == 0 else None
        axes.plot(tokens[phase], _smooth(loss[phase], width), color=TRAIN, linewidth=1.8, label=label)


def _draw_evaluations(axes: Axes, evaluations: Sequence[dict[str, Any]]) -> None:
    if not evaluations:
        return
    tokens = _column(evaluations, "tokens")
    point: dict[str, Any] = {
        "color": VALID,
        "linestyle": "none",
        "marker": "o",
        "markersize": 5,
        "zorder": 4,
    }
    axes.plot(tokens, _column(evaluations, "valid_loss"), label="validation", **point)
    ablated = _column(evaluations, "ablated_valid_loss")
    if np.isfinite(ablated).any():
        axes.plot(tokens, ablated, label="validation, memory ablated", markerfacecolor="white", **point)


def _limit_loss(axes: Axes, steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> None:
    """Set the range of the loss axis without the first 2 % of the steps, whose high losses would flatten the curve."""
    loss = _column(steps, "loss")
    after = loss[len(loss) // 50 :]
    valid = [_column(evaluations, name)[len(evaluations) > 2 :] for name in ("valid_loss", "ablated_valid_loss")]
    shown = np.concatenate([after, *valid])
    shown = shown[np.isfinite(shown)]
    if not shown.size:
        return
    low, high = float(np.min(shown)), float(np.quantile(shown, 0.999))
    room = max(0.08 * (high - low), 0.02)
    axes.set_ylim(low - room, high + 2.5 * room)


def _draw_schedule(axes: Axes, steps: Sequence[dict[str, Any]]) -> None:
    thin = slice(None, None, max(1, len(steps) // MAX_POINTS))
    tokens = _column(steps, "tokens")[thin]
    axes.plot(tokens, _column(steps, "lr")[thin], color=RATE, linewidth=1.6)
    axes.set_ylabel("learning rate", color=RATE)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    right = axes.twinx()
    right.spines[["top"]].set_visible(False)
    right.tick_params(colors=INK, labelsize=9)
    norm = _column(steps, "grad_norm")[thin]
    right.plot(tokens, norm, color=NORM, linewidth=0.7, alpha=0.8)
    right.set_ylabel("gradient norm", color=NORM)
    finite = norm[np.isfinite(norm) & (norm > 0)]
    if finite.size and finite.max() > 30 * np.median(finite):
        right.set_yscale("log")
        right.yaxis.set_minor_formatter(NullFormatter())
    else:
        right.set_ylim(bottom=0)


def _phases(steps: Sequence[dict[str, Any]]) -> list[slice]:
    """Return the slices of `steps` whose steps belong to one phase, in order."""
    starts = [number for number, step in enumerate(steps) if not number or step["phase"] != steps[number - 1]["phase"]]
    return [slice(begin, end) for begin, end in pairwise([*starts, len(steps)])]


def _column(lines: Sequence[dict[str, Any]], name: str) -> Floats:
    values = (line.get(name) for line in lines)
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _smooth(values: Floats, width: int) -> Floats:
    """Return the centred mean over `width` values (fewer at the ends), without values that are not finite."""
    finite = np.isfinite(values)
    kernel = np.ones(min(width, len(values)))
    total = np.convolve(np.where(finite, values, 0.0), kernel, mode="same")
    count = np.convolve(finite.astype(np.float64), kernel, mode="same")
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _tokens_label(value: float, _position: int | None) -> str:
    return short(value)
