"""What the parts found, as claims, as a table, as a picture."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.claims import claim

CHECKS = {
    "start": "one rank starts and reduces",
    "parity": "the first losses and gradient norms are a CPU's, every kind",
    "causality": "no later token changes an earlier logit, and text is the same however it is read",
    "resume": "a run through a checkpoint goes on bit for bit",
}
MFU_GOALS = {"llama": ("1.2 B Llama", 0.50), "lm2": ("1.7 B LM2 with memory", 0.45)}
SHIPPED = "as shipped"
COLOURS = ("#2f6db3", "#d1495b", "#3b7d4f")
Parts = dict[str, dict[str, Any]]


def claims(parts: Parts, counts: bool) -> list[dict[str, Any]]:
    """counts: the device and the sizes are those the goals are about; otherwise nothing is met or missed."""
    lines = []
    for part, what in CHECKS.items():
        if part in parts:
            ok = verdict(parts[part])
            value = None if ok is None else float(ok)
            lines.append(claim(f"{what}, on the device", value, "== 1", ok if counts else None))
    for part, (what, goal) in MFU_GOALS.items():
        lines.append(_compared(f"MFU, bf16, {what}, one device", shipped(parts, part, "mfu"), ">=", goal, counts))
    tax = _ratio(shipped(parts, "lm2-off", "tokens_per_second"), shipped(parts, "lm2", "tokens_per_second"))
    lines.append(_compared("memory tax, lm2, every block, on the device", tax, "<=", 1.35, counts))
    engine = _ratio(shipped(parts, "llama-plain", "tokens_per_second"), shipped(parts, "llama", "tokens_per_second"))
    lines.append(_compared("engine over a plain PyTorch loop, on the device", engine, "<=", 1.05, counts))
    return lines


def verdict(part: dict[str, Any]) -> bool | None:
    """Whether all of a part was right; None where it did not come to its end."""
    return part["results"].get("ok") if part["status"] in ("done", "wrong") else None


def shipped(parts: Parts, part: str, key: str) -> float | None:
    """A figure of a case without any variant switched on."""
    return parts.get(part, {}).get("results", {}).get("variants", {}).get(SHIPPED, {}).get(key)


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def _compared(what: str, value: float | None, sign: str, goal: float, counts: bool) -> dict[str, Any]:
    met = None
    if counts and value is not None:
        met = value >= goal if sign == ">=" else value <= goal
    return claim(what, value, f"{sign} {goal:.2f}", met)


def rows(parts: Parts) -> list[tuple[str, str, dict[str, Any]]]:
    """(case, variant, its figures), without variants that failed"""
    cases = [(part, found["results"].get("variants", {})) for part, found in parts.items()]
    return [(part, name, found) for part, variants in cases for name, found in variants.items() if "error" not in found]


def table(parts: Parts) -> str:
    lines = []
    for part, found in parts.items():
        said = {None: "", True: "right", False: "WRONG"}[verdict(found)]
        lines.append(f"{part:12s} {found['status']:10s} {found['seconds']:6.1f} s  {said} {found.get('error', '')}")
    for part, name, figures in rows(parts):
        mfu, gib = figures["mfu"], figures["peak_memory_gib"]
        lines.append(
            f"{part:12s} {name:12s} {figures['tokens_per_second']:12,.0f} tokens/s"
            + (f"  MFU {mfu:6.1%}" if mfu else "")
            + (f"  peak {gib:6.1f} GiB" if gib else "")
        )
    for part, found in parts.items():
        if profiled := found["results"].get("profile"):
            kernels, wall = profiled["kernel_ms"], profiled["wall_ms"]
            lines.append(f"{part}: kernels {kernels:.1f} of {wall:.1f} ms; attention: {profiled['attention']}")
            for top in profiled["top"]:
                lines.append(f"  {top['share']:6.1%} {top['ms']:9.2f} ms {top['calls']:6d}  {top['kernel'][:100]}")
    return "\n".join(lines)


def picture(parts: Parts, title: str, out: Path) -> None:
    """Bars of MFU (where the device's peak is known) and tokens/s."""
    found = rows(parts)
    names = [f"{part}\n{variant}" for part, variant, _ in found]
    with_mfu = any(figures["mfu"] for _, _, figures in found)
    figure = Figure(figsize=(max(6, 1.3 * len(found)), 7 if with_mfu else 4), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(1 + with_mfu, 1, squeeze=False)[:, 0]
    speeds = [figures["tokens_per_second"] for *_, figures in found]
    variants = list(dict.fromkeys(variant for _, variant, _ in found))
    colours = [COLOURS[variants.index(variant)] for _, variant, _ in found]
    _bars(panels[-1], names, speeds, colours, "tokens/s", "{:,.0f}")
    if with_mfu:
        _bars(panels[0], names, [100 * (f["mfu"] or 0) for *_, f in found], colours, "MFU, %", "{:.1f}")
        for goal in sorted({goal for _, goal in MFU_GOALS.values()}):
            panels[0].axhline(100 * goal, color="#888888", linewidth=0.8, linestyle="--")
    canvas.print_png(out)


def _bars(axes: Axes, names: list[str], values: list[float], colours: list[str], label: str, style: str) -> None:
    bars = axes.bar(range(len(names)), values, color=colours)
    axes.bar_label(bars, [style.format(value) for value in values], fontsize=8)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
