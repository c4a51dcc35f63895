"""What the parts found, as claims, as a table, as a picture."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.claims import claim

CHECKS = {
    "run": "a run through the launcher, killed, goes on as one that was not",
    "start": "one rank starts and reduces",
    "parity": "the first losses and gradient norms are a CPU's, every kind",
    "causality": "no later token changes an earlier logit, and text is the same however it is read",
    "resume": "a run through a checkpoint goes on bit for bit",
}
MFU_GOALS = {"llama": ("1.2 B Llama", 0.60), "lm2": ("1.7 B LM2 with memory", 0.55), "delta": ("1.6 B delta", 0.45)}
COLOURS = ("#2f6db3", "#d1495b", "#3b7d4f")
Found = dict[str, Any]
Parts = dict[str, Found]


def claims(parts: Parts, counts: bool) -> list[dict[str, Any]]:
    """counts: the device and the sizes are those the goals are about; otherwise nothing is met or missed."""
    lines = []
    for part, what in CHECKS.items():
        if part in parts:
            ok = verdict(parts[part])
            value = None if ok is None else float(ok)
            lines.append(claim(f"{what}, on the device", value, "== 1", ok if counts else None))
    for part, (what, goal) in MFU_GOALS.items():
        found = shipped(parts, part, memory=part != "llama")
        value = found["mfu"] if found else None
        lines.append(_compared(f"MFU, bf16, {what}, through the engine", value, ">=", goal, counts))
    for part in ("lm2", "delta"):
        tax = _tax(shipped(parts, part, memory=True), shipped(parts, part, memory=False))
        lines.append(_compared(f"memory tax over the ratio of FLOPs, {part}, on the device", tax, "<=", 1.05, counts))
    plain = shipped(parts, "engine", memory=False, loop="plain")
    engine = _ratio(plain, shipped(parts, "llama", memory=False), "tokens_per_second")
    lines.append(_compared("engine over a plain PyTorch loop, on the device", engine, "<=", 1.05, counts))
    return lines


def verdict(part: dict[str, Any]) -> bool | None:
    """Whether all of a part was right; None where it did not come to its end."""
    return part["results"].get("ok") if part["status"] in ("done", "wrong") else None


def shipped(parts: Parts, part: str, memory: bool, loop: str = "engine") -> Found | None:
    """The fastest case of a part with every path."""
    cases = [found for of_part, _, found in rows(parts) if of_part == part]
    fit = [c for c in cases if c["loop"] == loop and not c["off"] and (c["memory"] != "none") == memory]
    return max(fit, key=lambda c: c["mfu"] or 0.0, default=None)


def _tax(on: Found | None, off: Found | None) -> float | None:
    """Time for memory over time without, over the same ratio of FLOPs."""
    slower = _ratio(off, on, "tokens_per_second")
    more = _ratio(on, off, "flops_per_token")
    return slower / more if slower and more else None


def _ratio(above: Found | None, below: Found | None, key: str) -> float | None:
    return above[key] / below[key] if above and below else None


def _compared(what: str, value: float | None, sign: str, goal: float, counts: bool) -> dict[str, Any]:
    met = None
    if counts and value is not None:
        met = value >= goal if sign == ">=" else value <= goal
    return claim(what, value, f"{sign} {goal:.2f}", met)


def rows(parts: Parts) -> list[tuple[str, str, Found]]:
    """(part, case, its figures), without cases that failed or did not end."""
    cases = [(part, found["results"].get("variants", {})) for part, found in parts.items()]
    return [(part, n, found) for part, variants in cases for n, found in variants.items() if "losses" in found]


def failures(parts: Parts) -> list[str]:
    cases = [(part, found["results"].get("variants", {})) for part, found in parts.items()]
    return [f"{p}: {n}: {found['error']}" for p, variants in cases for n, found in variants.items() if "error" in found]


def table(parts: Parts) -> str:
    lines = []
    for part, found in parts.items():
        said = {None: "", True: "right", False: "WRONG"}[verdict(found)]
        lines.append(f"{part:12s} {found['status']:10s} {found['seconds']:6.1f} s  {said} {found.get('error', '')}")
    lines += failures(parts)
    for part, name, figures in rows(parts):
        mfu, gib = figures["mfu"], figures["peak_memory_gib"]
        lines.append(
            f"{part:12s} {name:44s} {figures['tokens_per_second']:12,.0f} tokens/s"
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
    names = [name.replace(", ", "\n") for _, name, _ in found]
    with_mfu = any(figures["mfu"] for _, _, figures in found)
    figure = Figure(figsize=(max(6, 1.3 * len(found)), 7 if with_mfu else 4), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(1 + with_mfu, 1, squeeze=False)[:, 0]
    speeds = [figures["tokens_per_second"] for *_, figures in found]
    colours = [COLOURS[2 if f["off"] else f["loop"] == "plain"] for *_, f in found]
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
