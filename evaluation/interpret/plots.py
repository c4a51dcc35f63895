"""Draw an interpretation's figures, for SVGs of the page and for PNG files."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.interpret.analysis import Analysis
from evaluation.report.figure import COLOURS, INK, new_figure, tidy

TOKEN_WIDTH = 14  # characters of a token on an axis
POINTS = 500  # of a line, at most


def figures(analysis: Analysis) -> Iterator[tuple[str, str, Figure]]:
    """Yield file name, caption and figure, block by block."""
    for layer in analysis.layers:
        block = f"block {layer['layer']}"
        yield f"heatmap-{layer['layer']:02}", f"{block}: tokens × slots", _heatmaps(analysis, layer)
        if "over_time" in layer:
            caption = f"{block}: what the prompt's last token would read after each segment"
            yield f"over-time-{layer['layer']:02}", caption, _over_time(analysis, layer)
    yield "course", "gates, reads and state from token to token", _course(analysis)
    yield "ablated", "what the tokens lose when memory is ablated", _ablated(analysis)


def shown(token: str) -> str:
    """Return a token's text for an axis: white space as signs, long texts cut."""
    text = token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·").replace("▁", "·").replace("$", r"\$")
    return text if len(text) <= TOKEN_WIDTH else text[: TOKEN_WIDTH - 1] + "…"


def _heatmaps(analysis: Analysis, layer: dict[str, Any]) -> Figure:
    maps, slots = layer["heatmaps"], layer["slots"]
    rows = max(len(m["positions"]) for m in maps.values())
    figure = new_figure(10, 1.3 + 0.16 * rows)
    for axes, (name, one) in zip(figure.subplots(1, 2), maps.items(), strict=True):
        _heatmap(figure, axes, one["values"], slots)
        axes.set_yticks(range(len(one["positions"])), [shown(analysis.tokens[p]) for p in one["positions"]], fontsize=8)
        axes.set_title(f"{name} the memory was updated", fontsize=10, color=INK)
    return figure


def _over_time(analysis: Analysis, layer: dict[str, Any]) -> Figure:
    values = layer["over_time"]
    figure = new_figure(10, 1.4 + 0.16 * min(len(values), 12))
    axes = figure.subplots()
    _heatmap(figure, axes, values, layer["slots"])
    axes.set_ylabel("segments written", color=INK)
    return figure


def _heatmap(figure: Figure, axes: Axes, values: list[list[float]], slots: list[int]) -> None:
    image = axes.imshow(np.array(values), aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    axes.set_xticks(range(len(slots)), [str(n) for n in slots], fontsize=8, rotation=90)
    axes.set_xlabel("slot", color=INK)
    axes.tick_params(colors=INK)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _course(analysis: Analysis) -> Figure:
    """Draw gates, norm of the read and norm of the state along the stream, with a line for each block."""
    names = [name for name in ("gates", "read_norm", "state_norm") if any(layer.get(name) for layer in analysis.layers)]
    panels = [("loss", "loss of each token\n(nats)")]
    panels += [("out", "output gate"), ("in", "input gate"), ("forget", "forget gate")] if "gates" in names else []
    panels += [
        (n, t) for n, t in (("read_norm", "norm of\nthe read"), ("state_norm", "norm of\nthe state")) if n in names
    ]
    figure = new_figure(10, 1.3 * len(panels) + 0.6)
    for axes, (name, label) in zip(np.atleast_1d(figure.subplots(len(panels), 1, sharex=True)), panels, strict=True):
        tidy(axes)
        axes.set_ylabel(label, color=INK, fontsize=8)
        for boundary in range(analysis.segment_length, len(analysis.tokens), analysis.segment_length):
            axes.axvline(boundary, color="#8a8a8a", linewidth=0.3, alpha=0.5)
        if name == "loss":
            axes.plot(*_thinned(np.arange(1, len(analysis.loss) + 1), analysis.loss), color=COLOURS[0], linewidth=0.8)
            continue
        for number, layer in enumerate(analysis.layers):
            values = layer["gates"].get(name) if name in ("in", "out", "forget") else layer.get(name)
            if values:
                places = np.arange(len(values)) * (1 if len(values) > _segments(analysis) else analysis.segment_length)
                style: dict[str, Any] = {"marker": ".", "markersize": 4} if len(values) <= _segments(analysis) else {}
                colour = COLOURS[number % len(COLOURS)]
                axes.plot(
                    *_thinned(places, values), linewidth=0.8, color=colour, label=f"block {layer['layer']}", **style
                )
    axes.set_xlabel("token (lines: a segment ends, the memory is written)", color=INK)
    if len(panels) > 1 and axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7, ncols=8, loc="upper left", frameon=False, labelcolor=INK)
    return figure


def _thinned(places: np.ndarray[Any, Any], values: list[float]) -> tuple[list[float], list[float]]:
    """Return at most POINTS points, the means of consecutive values."""
    parts = min(POINTS, len(values))
    return tuple([float(part.mean()) for part in np.array_split(x, parts)] for x in (places, np.array(values)))  # type: ignore[return-value]


def _segments(analysis: Analysis) -> int:
    return -(-len(analysis.tokens) // analysis.segment_length)


def _ablated(analysis: Analysis) -> Figure:
    base, *rows = analysis.ablated
    figure = new_figure(10, 0.8 + 0.2 * len(rows))
    axes = figure.subplots()
    tidy(axes)
    axes.barh(range(len(rows)), [row["loss"] - base["loss"] for row in rows], color=COLOURS[0])
    axes.set_yticks(range(len(rows)), [ablated_name(row) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"loss above {base['loss']:.4f}, the one with the whole memory (nats per token)", color=INK)
    return figure


def ablated_name(row: dict[str, Any]) -> str:
    """Return what a row of `Analysis.ablated` left out, in words."""
    if row["what"] not in ("slot", "block"):
        return str(row["what"])
    parts = [f"block {row['layer']}"] if "layer" in row else []
    return ", ".join(parts + ([f"slot {row['slot']}"] if "slot" in row else []))
