"""The table, the claims and the picture of what experiments/babilong.py measured.

python experiments/babilong_report.py experiments/results/babilong-h200-2026-11-27.jsonl --picture docs/babilong.png
"""

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evaluation.babilong.dense import TASKS
from evaluation.babilong.lengths import tokens_of
from evaluation.intervals import wilson
from experiments.babilong_parts.kinds import OURS, TITLES

GOALS = {"rmt": 0.371, "llama-full": 0.863}  # LM2's own claim, relative (arXiv 2502.06049)
# ARMT paper (arXiv 2407.04841), table 1: fine-tuned per task, 137 to 145 M parameters, trained on up to 16 K tokens
PUBLISHED = {"ARMT, 145 M, a model a task": {"64k": 0.979, "128k": 0.969}, "RMT, 137 M": {"64k": 0.728, "128k": 0.633}}


@dataclass(frozen=True)
class Curve:
    """A kind's best setting.

    scores: length -> task -> share of right answers, the mean over the seeds.
    samples: length -> questions a task, of all seeds together; 0 where an older log does not say.
    """

    title: str
    kind: str
    seeds: tuple[int, ...]
    scores: dict[str, dict[str, float]]
    samples: dict[str, int]

    @property
    def overall(self) -> float:
        """Mean over tasks and lengths, as LM2 reports it."""
        return mean({length: mean(by_task) for length, by_task in self.scores.items()})

    def reach(self, length: str) -> float | None:
        """Half of Wilson's 95 % interval of all tasks' questions together; None where the samples are unknown."""
        count = self.samples[length] * len(TASKS)
        if not count:
            return None
        low, high = wilson(round(mean(self.scores[length]) * count), count)
        return (high - low) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, nargs="+", help="log.jsonl of experiments/babilong.py")
    parser.add_argument("--picture", type=Path, help="where to draw accuracy by length")
    options = parser.parse_args()
    curves = best([json.loads(line) for log in options.log for line in log.read_text(encoding="utf-8").splitlines()])
    print_table(curves)
    print_claims(curves)
    if options.picture:
        draw(curves, options.picture)


def best(lines: list[dict[str, Any]]) -> list[Curve]:
    """A curve for each kind: of the settings that were tried, the one with the highest mean over tasks and lengths.

    An evaluation that was repeated counts by its last line.  Lengths that a seed lacks are left out.
    """
    described = {line["entry"]: line for line in lines if "kind" in line}
    results = {(line["entry"], line["length"]): line for line in lines if "length" in line}
    settings: dict[tuple[str, str], list[str]] = {}  # (title, entry without its seed) -> entries
    for entry in dict.fromkeys(entry for entry, _ in results):
        settings.setdefault((title(described[entry]), re.sub(r"-s\d+", "", entry)), []).append(entry)
    curves: dict[str, Curve] = {}
    for (name, _), entries in settings.items():
        lengths = [length for entry, length in results if entry == entries[0]]
        lengths = [length for length in lengths if all((entry, length) in results for entry in entries)]
        scores = {
            length: {task: sum(results[entry, length][task] for entry in entries) / len(entries) for task in TASKS}
            for length in lengths
        }
        samples = {length: sum(results[entry, length].get("samples", 0) for entry in entries) for length in lengths}
        seeds = tuple(described[entry]["seed"] for entry in entries)
        curve = Curve(name, described[entries[0]]["kind"], seeds, scores, samples)
        if name not in curves or curve.overall > curves[name].overall:
            curves[name] = curve
    return list(curves.values())


def mean(shares: dict[str, float]) -> float:
    return sum(shares.values()) / len(shares)


def title(described: dict[str, Any]) -> str:
    """The entry's name for people."""
    kind, _, retrieval = described["kind"].partition("+")
    name = next(text for known, text in TITLES.items() if known == kind)
    parts = [name, "sparse writes" if described.get("sparse") else "", "with retrieval" if retrieval else ""]
    if described.get("span", 1) > 1:
        parts.append(f"attention over {described['span']} segments")
    return ", ".join(filter(None, parts))


def print_table(curves: list[Curve]) -> None:
    """Markdown: means over the tasks by length with their 95 % intervals, then each task."""
    lengths = list(curves[0].scores)
    print("| | seeds | " + " | ".join(lengths) + " | mean |\n|---|" + "---|" * (len(lengths) + 2))
    for curve in curves:
        cells = []
        for length in lengths:
            reach = curve.reach(length)
            cells.append(f"{100 * mean(curve.scores[length]):.1f}" + ("" if reach is None else f" ± {100 * reach:.1f}"))
        seeds = ", ".join(map(str, curve.seeds))
        print(f"| {curve.title} | {seeds} | " + " | ".join(cells) + f" | {100 * curve.overall:.1f} |")
    print("\n| | " + " | ".join(lengths) + " |\n|---|" + "---|" * len(lengths))
    for curve in curves:
        for task in TASKS:
            cells = [f"{100 * curve.scores[length][task]:.0f}" for length in lengths]
            print(f"| {curve.title} {task} | " + " | ".join(cells) + " |")


def print_claims(curves: list[Curve]) -> None:
    """One JSON line a claim."""
    ours = [curve for curve in curves if curve.kind in OURS]
    highest = max((curve.overall for curve in ours), default=None)
    for other, goal in GOALS.items():
        found = [curve.overall for curve in curves if curve.kind == other]
        gain = highest / max(found) - 1 if highest is not None and found else None
        met = None if gain is None else gain >= goal
        claim = f"BABILong qa1-5, mean over lengths, ours over {other}, relative"
        print(json.dumps({"claim": claim, "value": gain and round(gain, 3), "goal": f">= {goal}", "met": met}))
    for curve in ours:
        at_0k = mean(curve.scores["0k"])
        print(
            json.dumps(
                {
                    "claim": f"{curve.title}: mean at 0K",
                    "value": round(at_0k, 3),
                    "goal": ">= 0.85",
                    "met": at_0k >= 0.85,
                }
            )
        )
        if "16k" in curve.scores:
            kept = mean(curve.scores["16k"]) / at_0k
            claim = f"{curve.title}: mean at 16 times the trained length over its mean at 0K"
            print(json.dumps({"claim": claim, "value": round(kept, 3), "goal": ">= 0.9", "met": kept >= 0.9}))


def draw(curves: list[Curve], path: Path) -> None:
    """Accuracy by length; 0K stands one step before 1K."""
    figure, axes = plt.subplots(figsize=(7.2, 4.4), dpi=140, layout="constrained")
    for curve in curves:
        places = [max(500, tokens_of(length)) for length in curve.scores]
        heights = [100 * mean(by_task) for by_task in curve.scores.values()]
        ours = curve.kind in OURS
        style = {"linewidth": 2.2 if ours else 1.4, "linestyle": "-" if ours else "--", "marker": "o", "markersize": 4}
        (line,) = axes.plot(places, heights, label=curve.title, **style)  # type: ignore[arg-type]
        reaches = [100 * (curve.reach(length) or 0.0) for length in curve.scores]
        low, high = ([h + sign * r for h, r in zip(heights, reaches, strict=True)] for sign in (-1, 1))
        axes.fill_between(places, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    for name, marks in PUBLISHED.items():
        places = [tokens_of(length) for length in marks]
        axes.plot(
            places,
            [100 * value for value in marks.values()],
            "k:",
            marker="x" if "ARMT" in name else "+",
            label=name + " (published)",
        )
    axes.axvline(1000, color="grey", linewidth=0.8)
    axes.text(1060, 3, "longest trained", fontsize=7, color="grey")
    lengths = list(curves[0].scores)
    axes.set_xscale("log", base=2)
    axes.set_xticks([max(500, tokens_of(length)) for length in lengths], [length.upper() for length in lengths])
    axes.minorticks_off()
    axes.set_ylim(0, 100)
    axes.set_xlabel("tokens of text around the facts")
    axes.set_ylabel("right answers, mean of qa1-qa5, %")
    figure.legend(fontsize=7, loc="outside lower center", ncols=4, frameon=False)
    axes.grid(alpha=0.25)
    figure.savefig(path)


if __name__ == "__main__":
    main()
