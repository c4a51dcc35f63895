"""Plots of days, tokens/s and the fraction of time spent training against the number of devices."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from data_prep.files import replacing
from training.config import RunConfig
from training.errors import ConfigError
from training.planning.devices import Device
from training.planning.goodput import HOUR, Goodput
from training.planning.plan import Plan
from training.planning.search import best_plan

SCALE = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)  # default numbers of devices
TIME, SPEED, IDEAL, INK, GRID = "#d1495b", "#2f6db3", "#999999", "#333333", "#e3e3e3"


def parse_scale(text: str) -> list[int]:
    """Return the numbers of devices in a text such as `8,16,32`; `SCALE` for an empty one. Raises `ConfigError`."""
    parts = [part.strip() for part in text.split(",")] if text else [str(n) for n in SCALE]
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise ConfigError(f"--scale: '{text}' must be numbers of devices with commas between, such as 8,64,512")
    return sorted({int(part) for part in parts})


def plan_scale(config: RunConfig, counts: Sequence[int], device: Device) -> tuple[list[Plan], list[str]]:
    """Return the best plans for the numbers of devices that have one, and why the others have none."""
    plans, problems = [], []
    for count in counts:
        try:
            plans.append(best_plan(config, count, device).best)
        except ConfigError as error:
            problems.append(str(error))
    return plans, problems


def plot_scale(plans: Sequence[Plan], out: Path) -> None:
    """Draw days and tokens/s of the plans as a PNG, which replaces the file at `out`."""
    config, device = plans[0].config, plans[0].device
    figure = Figure(figsize=(10, 5), dpi=130, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    days, speed = figure.subplots(1, 2)
    batches = sorted({phase.tokens_per_step for phase in config.phases})
    figure.suptitle(
        f"{config.run.name}: plan for {config.total_tokens / 1e9:,.0f} B tokens on {device.name}, "
        f"{' and '.join(f'{batch / 1e6:.2g} M' for batch in batches)} tokens a step",
        color=INK,
    )
    counts = [plan.ranks.world for plan in plans]
    first = plans[0]
    ideal = [count / counts[0] for count in counts]
    for axes, values, perfect, color, label in (
        (days, [p.days for p in plans], [first.days / f for f in ideal], TIME, "days"),
        (speed, [p.tokens_per_second for p in plans], [first.tokens_per_second * f for f in ideal], SPEED, "tokens/s"),
    ):
        axes.plot(counts, perfect, color=IDEAL, linestyle="--", linewidth=1, label="in proportion to the first")
        axes.plot(counts, values, color=color, marker="o", linewidth=1.8, label="planned")
        axes.set(yscale="log", ylabel=label)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        _finish(axes, counts, device)
    for plan, count in zip(plans, counts, strict=True):
        speed.annotate(
            f"{plan.mfu:.0%}", (count, plan.tokens_per_second), (0, -14), textcoords="offset points", fontsize=8
        )
    speed.set_title("with MFU", fontsize=9, color=INK)
    _write(canvas, out)


def plot_goodput(found: Sequence[Goodput], out: Path) -> None:
    """Draw the fraction of time spent training and the best checkpoint interval as a PNG, which replaces `out`."""
    config, device = found[0].plan.config, found[0].plan.device
    figure = Figure(figsize=(10, 5), dpi=130, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    share, interval = figure.subplots(1, 2)
    figure.suptitle(
        f"{config.run.name}: {device.name} that fail every {found[0].mtbf / HOUR:,.0f} hours, each", color=INK
    )
    counts = [one.plan.ranks.world for one in found]
    own = f"every {config.checkpoint.every_steps:,} steps, as configured"
    share.plot(counts, [100 * one.own_share for one in found], color=IDEAL, linestyle="--", linewidth=1, label=own)
    share.plot(counts, [100 * one.best_share for one in found], color=SPEED, marker="o", label="best interval")
    share.set(ylabel="% of the time spent training")
    between = [one.between_failures / HOUR for one in found]
    interval.plot(counts, between, color=IDEAL, linestyle="--", linewidth=1, label="between two failures")
    interval.plot(counts, [one.interval / HOUR for one in found], color=TIME, marker="o", label="between checkpoints")
    interval.set(yscale="log", ylabel="hours")
    interval.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    for axes in (share, interval):
        _finish(axes, counts, device)
    _write(canvas, out)


def _finish(axes: Any, counts: Sequence[int], device: Device) -> None:
    """Add the axis of the numbers of devices, a grid and a legend."""
    axes.set(xscale="log", xlabel=f"{device.name} GPUs")
    axes.set_xticks(counts, [f"{count:,}" for count in counts], rotation=45)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    axes.legend(frameon=False, fontsize=9)


def _write(canvas: FigureCanvasAgg, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as aside:
        canvas.print_png(aside)
