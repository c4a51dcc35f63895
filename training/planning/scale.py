"""Days and tokens/s against the number of devices, as a picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from training.config import RunConfig
from training.errors import ConfigError
from training.planning.devices import Device
from training.planning.plan import Plan
from training.planning.search import best_plan

SCALE = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)  # devices, where none are named
TIME, SPEED, IDEAL, INK, GRID = "#d1495b", "#2f6db3", "#999999", "#333333", "#e3e3e3"


def parse_scale(text: str) -> list[int]:
    """`8,16,32`, or an empty text for `SCALE`; raises `ConfigError`."""
    parts = [part.strip() for part in text.split(",")] if text else [str(n) for n in SCALE]
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise ConfigError(f"--scale: '{text}' must be numbers of devices with commas between, such as 8,64,512")
    return sorted({int(part) for part in parts})


def plan_scale(config: RunConfig, counts: Sequence[int], device: Device) -> tuple[list[Plan], list[str]]:
    """The best plan for each number of devices that has one, and why the others have none."""
    plans, problems = [], []
    for count in counts:
        try:
            plans.append(best_plan(config, count, device).best)
        except ConfigError as error:
            problems.append(str(error))
    return plans, problems


def plot_scale(plans: Sequence[Plan], out: Path) -> None:
    """Draw the plans as a PNG at `out`; the old picture is there until the new one is whole."""
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
        axes.set(xscale="log", yscale="log", xlabel=f"{device.name} GPUs", ylabel=label)
        axes.set_xticks(counts, [f"{count:,}" for count in counts], rotation=45)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.grid(True, color=GRID, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=9)
        axes.legend(frameon=False, fontsize=9)
    for plan, count in zip(plans, counts, strict=True):
        speed.annotate(
            f"{plan.mfu:.0%}", (count, plan.tokens_per_second), (0, -14), textcoords="offset points", fontsize=8
        )
    speed.set_title("with MFU", fontsize=9, color=INK)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(out.name + ".tmp")
    canvas.print_png(aside)
    aside.replace(out)
