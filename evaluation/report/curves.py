"""Sections on training: loss curves, Figure 5, speed and memory, perplexity by position."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from evaluation.report.figure import COLOURS, INK, new_figure, tidy
from evaluation.report.parts import Cell, Missing, Picture, Row, Section, Table, each, lacking
from evaluation.report.sources import Run, evaluated
from model.cost import count_parameters

POINTS = 200  # of a curve; each is the mean of consecutive steps


def blocks(run: Run) -> str:
    """Return the blocks that have a memory, in words."""
    if run.config is None:
        return "unknown"
    model = run.config.model
    hosts = sorted(model.memory.memory_layers(model.num_layers)) if any(p.memory for p in run.config.phases) else []
    explicit = "" if model.explicit is None or not any(p.memory for p in run.config.phases) else " + explicit"
    if not hosts:
        return explicit.removeprefix(" + ") or "none"
    kind = model.memory.label
    if len(hosts) == model.num_layers:
        return f"{kind}, all {model.num_layers}{explicit}"
    if hosts == list(range(len(hosts))):
        return f"{kind}, first {len(hosts)} of {model.num_layers}{explicit}"
    return f"{kind}, {', '.join(map(str, hosts))} of {model.num_layers}{explicit}"


def loss_section(runs: list[Run]) -> Section:
    """Return the section of training and validation loss over tokens."""
    trained = [run for run in runs if run.steps]
    if not trained:
        missing = [Missing("no run folder with metrics.jsonl was given", "python launchers/report.py runs/NAME …")]
        return Section("Training", missing=missing)
    figure = new_figure(9, 4)
    axes = figure.subplots()
    for number, run in enumerate(trained):
        colour = COLOURS[number % len(COLOURS)]
        for part, (_, lines) in enumerate(groupby(run.steps, key=lambda line: line["phase"])):
            tokens, loss = _thinned(list(lines))
            axes.plot(tokens, loss, color=colour, linewidth=1.2, alpha=0.7, label=None if part else run.name)
        for name, filled in (("valid_loss", colour), ("ablated_valid_loss", "none")):
            points = [(e["tokens"], e[name]) for e in run.evaluations if e.get(name) is not None]
            axes.plot(*_columns(points), "o", markersize=4, color=colour, markerfacecolor=filled)
    _over_tokens(axes, "loss (nats per token)")
    _show_the_end(axes, [e["valid_loss"] for run in trained for e in run.evaluations if e.get("valid_loss")])
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    caption = "Lines: training loss; dots: validation; open dots: validation with the memory ablated"
    rows = [
        Row(run.name, [Cell(blocks(run)), Cell(f"{run.steps[-1]['tokens']:,}"), *_last_losses(run)]) for run in trained
    ]
    head = ["run", "blocks with memory", "tokens", "validation loss", "perplexity", "memory ablated"]
    return Section(
        "Training", tables=[Table("At the end", head, each(rows))], pictures=[Picture("loss", caption, figure)]
    )


def _last_losses(run: Run) -> Iterator[Cell]:
    last = next((e for e in reversed(run.evaluations) if e.get("valid_loss") is not None), None)
    if last is None:
        yield from (Cell("–"), Cell("–"), Cell("–"))
        return
    yield Cell(f"{last['valid_loss']:.3f}")
    yield Cell(f"{np.exp(last['valid_loss']):.1f}")
    ablated = last.get("ablated_valid_loss")
    yield Cell("–") if ablated is None else Cell(f"{ablated:.3f}", f"{ablated - last['valid_loss']:+.3f}")


def ablation_section(runs: list[Run], book: dict[str, Any]) -> Section:
    """Return the section of Figure 5: validation perplexity of runs that differ only in the blocks with a memory."""
    published = book["lm2_paper"]["ablation"]
    families = [family for family in _families(runs) if len({blocks(run) for run in family}) > 1]
    paragraphs = [f"Which blocks have a memory, as in Figure 5 of {book['lm2_paper']['citation']}."]
    pictures, tables = [], []
    for number, family in enumerate(families, 1):
        pictures.append(Picture(f"figure-5-{number}", f"Figure 5. {_shape(family[0])}", _perplexity(family)))
        rows = [
            Row(run.name, [Cell(blocks(run)), Cell(f"{run.steps[-1]['tokens']:,}"), *_last_losses(run)])
            for run in family
        ]
        head = ["run", "blocks with memory", "tokens", "validation loss", "perplexity", "memory ablated"]
        tables.append(Table("At the end of Figure 5's curves", head, each(rows)))
    missing = [] if families else [
        Missing(
            "no two runs of one shape differ in their memory's blocks",
            "python launchers/ablation.py --config configs/ablation/figure5_small.yaml",
        )
    ]  # fmt: skip
    return Section("Which blocks need a memory", paragraphs, tables, pictures, published["notes"], missing)


def _families(runs: list[Run]) -> list[list[Run]]:
    """Return groups of runs with equal backbone, data and length, and any memory."""
    families: dict[str, list[Run]] = {}
    for run in runs:
        if run.config is not None and any(e.get("valid_loss") for e in run.evaluations):
            model = run.config.model.model_dump(exclude={"memory"})
            lengths = sum(phase.tokens for phase in run.config.phases)
            families.setdefault(str((model, run.config.data.path, lengths)), []).append(run)
    return list(families.values())


def _shape(run: Run) -> str:
    assert run.config is not None
    model = run.config.model
    return f"Validation perplexity over tokens; {model.num_layers} blocks of width {model.hidden_size}"


def _perplexity(family: list[Run]) -> Figure:
    figure = new_figure(9, 4)
    axes = figure.subplots()
    for number, run in enumerate(family):
        points = [(e["tokens"], np.exp(e["valid_loss"])) for e in run.evaluations if e.get("valid_loss") is not None]
        axes.plot(*_columns(points), marker=".", color=COLOURS[number % len(COLOURS)], label=f"memory: {blocks(run)}")
    axes.set_yscale("log")
    _over_tokens(axes, "validation perplexity")
    _plain_ticks(axes)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return figure


def position_section(runs: list[Run]) -> Section:
    """Return the section of perplexity by position in a long document, and by length."""
    series = [
        (run, r.series["perplexity_by_position"])
        for run in runs
        for r in run.results
        if "perplexity_by_position" in r.series
    ]
    rows = []
    lengths = list(dict.fromkeys(row.length for m in evaluated(runs, "perplexity") for row in m.rows if row.length))
    for model in evaluated(runs, "perplexity"):
        by = {row.length: row for row in model.rows}
        rows.append(Row(model.name, [_perplexity_cell(by.get(length)) for length in lengths]))
    head = ["model", *(length.upper() for length in lengths)]
    tables = (
        [Table("Perplexity by length", head, each(rows), "Over the first tokens of texts; below, nats per token.")]
        if lengths
        else []
    )
    pictures = []
    if series:
        figure = new_figure(9, 3.6)
        axes = figure.subplots()
        tidy(axes)
        for number, (run, one) in enumerate(series):
            axes.plot(one["position"], np.exp(one["loss"]), color=COLOURS[number % len(COLOURS)], label=run.name)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.set_xlabel("position in the document (tokens)", color=INK)
        axes.set_ylabel("perplexity", color=INK)
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
        axes.set_yscale("log")
        _plain_ticks(axes)
        caption = "Mean over texts; only a memory can use tokens further back than attention reaches"
        pictures.append(Picture("perplexity-by-position", caption, figure))
    have = {run.name for run, _ in series}
    missing = lacking(
        "perplexity by position",
        [run for run in runs if run.name not in have],
        "python launchers/evaluate.py --checkpoint {run} --tasks perplexity --lengths 1k,4k,16k --samples 8",
    )
    return Section("Perplexity by position", tables=tables, pictures=pictures, missing=missing)


def _perplexity_cell(row: Any) -> Cell:
    return Cell("–") if row is None or row.value is None else Cell(f"{np.exp(row.value):.2f}", f"{row.value:.3f}")


def speed_section(runs: list[Run]) -> Section:
    """Return the section of speed and memory, in training and in evaluation."""
    rows = []
    for run in runs:
        plain = [
            r for r in run.results if not r.model.kind.endswith("+rag")
        ]  # with retrieval the speed is not the model's
        newest = (plain or run.results)[-1] if run.results else None
        rows.append(
            Row(
                run.name,
                [
                    Cell(blocks(run) if run.config else (newest.model.kind if newest else "–")),
                    Cell(_count(run)),
                    Cell(_training_speed(run)),
                    Cell(
                        "–"
                        if newest is None or newest.tokens_per_second is None
                        else f"{newest.tokens_per_second:,.0f}"
                    ),
                    Cell(
                        "–"
                        if newest is None or not newest.peak_memory_bytes
                        else f"{newest.peak_memory_bytes / 2**20:,.0f}"
                    ),
                    Cell(newest.device if newest else "–"),
                ],
            )
        )
    head = ["run", "memory", "parameters", "training tokens/s", "evaluation tokens/s", "evaluation peak MiB", "device"]
    text = "Training: median of the last phase, all ranks together. Evaluation: from the newest result file. "
    text += "The LM2 paper states no speed."
    return Section("Speed and memory", [text], [Table("Ours", head, each(rows))])


def _count(run: Run) -> str:
    if run.config is not None:
        on = any(phase.memory for phase in run.config.phases)
        parameters = count_parameters(run.config.model, memory_on=on)
        return f"{parameters.total:,}" + (f" ({parameters.memory:,} memory)" if on and parameters.memory else "")
    return f"{run.results[-1].model.parameters:,}" if run.results else "–"


def _training_speed(run: Run) -> str:
    last = [line for line in run.steps if line["phase"] == run.steps[-1]["phase"]]
    speeds = [line["tokens_per_second"] for line in last if line.get("tokens_per_second")]
    return f"{median(speeds):,.0f}" if speeds else "–"


def _thinned(lines: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Return tokens and loss, averaged over at most POINTS groups of consecutive steps."""
    known = [(line["tokens"], line["loss"]) for line in lines if line.get("loss") is not None]
    parts = [part for part in np.array_split(np.array(known), min(POINTS, max(1, len(known)))) if len(part)]
    return [float(part[:, 0].mean()) for part in parts], [float(part[:, 1].mean()) for part in parts]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _over_tokens(axes: Axes, label: str) -> None:
    tidy(axes)
    axes.set_xlabel("tokens", color=INK)
    axes.set_ylabel(label, color=INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tokens(x)))


def _plain_ticks(axes: Axes) -> None:
    """Label a logarithmic axis with plain numbers."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: ""))


def _tokens(x: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(x) >= size:
            return f"{x / size:g} {unit}"
    return f"{x:g}"


def _show_the_end(axes: Axes, valid: list[float]) -> None:
    """Limit the axis to the range of the later losses; the fall of the first steps leaves it at the top."""
    if valid:
        low, high = min(valid), sorted(valid)[int(0.9 * (len(valid) - 1))]
        room = max(0.25 * (high - low), 0.05)
        axes.set_ylim(low - room, high + 4 * room)
