"""The table, the claims and the picture of what experiments/babilong.py measured.

python experiments/babilong_report.py experiments/results/babilong-h200-2026-11-27.jsonl --picture docs/babilong.png
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evaluation.babilong.lengths import tokens_of
from experiments.babilong_parts.kinds import OURS, TITLES
from experiments.babilong_parts.stories import TASKS

GOALS = {"rmt": 0.371, "llama-full": 0.863}  # LM2's own claim, relative (arXiv 2502.06049)
# ARMT paper (arXiv 2407.04841), table 1: fine-tuned per task, 137 to 145 M parameters, trained on up to 16 K tokens
PUBLISHED = {"ARMT, 145 M, a model a task": {"64k": 0.979, "128k": 0.969}, "RMT, 137 M": {"64k": 0.728, "128k": 0.633}}
Scores = dict[str, dict[str, dict[str, float]]]  # entry -> length -> task -> share of right answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="log.jsonl of experiments/babilong.py")
    parser.add_argument("--picture", type=Path, help="where to draw accuracy by length")
    options = parser.parse_args()
    kinds, scores = read(options.log)
    print_table(kinds, scores)
    print_claims(kinds, scores)
    if options.picture:
        draw(kinds, scores, options.picture)


def read(path: Path) -> tuple[dict[str, str], Scores]:
    """Title of each entry, and its scores.  An evaluation that was repeated counts by its last line."""
    kinds, scores = dict[str, str](), Scores()
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if "kind" in line:
            kinds[line["entry"]] = line["kind"]
        if "length" in line:
            scores.setdefault(line["entry"], {})[line["length"]] = {task: line[task] for task in TASKS}
    return kinds, scores


def mean(by_task: dict[str, float]) -> float:
    """Over the tasks."""
    return sum(by_task.values()) / len(by_task)


def overall(by_length: dict[str, dict[str, float]]) -> float:
    """Over tasks and lengths, as LM2 reports it."""
    return sum(map(mean, by_length.values())) / len(by_length)


def title(entry: str, kinds: dict[str, str]) -> str:
    """The entry's name for people."""
    name = next(text for kind, text in TITLES.items() if kind == kinds[entry])
    return name + (", sparse writes" if "-sparse" in entry else "")


def print_table(kinds: dict[str, str], scores: Scores) -> None:
    """Markdown: means over the tasks by length, then each task."""
    lengths = list(next(iter(scores.values())))
    print("| | " + " | ".join(lengths) + " | mean |\n|---|" + "---|" * (len(lengths) + 1))
    for entry, by_length in scores.items():
        cells = [f"{100 * mean(by_length[length]):.1f}" for length in lengths]
        print(f"| {title(entry, kinds)} | " + " | ".join(cells) + f" | {100 * overall(by_length):.1f} |")
    print()
    for entry, by_length in scores.items():
        for task in TASKS:
            cells = [f"{100 * by_length[length][task]:.0f}" for length in lengths]
            print(f"| {title(entry, kinds)} {task} | " + " | ".join(cells) + " |")


def print_claims(kinds: dict[str, str], scores: Scores) -> None:
    """One JSON line a claim."""
    best = max((overall(v) for entry, v in scores.items() if kinds[entry] in OURS), default=None)
    for other, goal in GOALS.items():
        found = [overall(v) for entry, v in scores.items() if kinds[entry] == other]
        gain = best / max(found) - 1 if best is not None and found else None
        met = None if gain is None else gain >= goal
        claim = f"BABILong qa1-5, mean over lengths, ours over {other}, relative"
        print(json.dumps({"claim": claim, "value": gain and round(gain, 3), "goal": f">= {goal}", "met": met}))
    for entry, by_length in scores.items():
        if kinds[entry] in OURS and {"0k", "16k"} <= by_length.keys():
            kept = mean(by_length["16k"]) / mean(by_length["0k"])
            claim = f"{entry}: mean at 16 times the trained length over its mean at 0K"
            print(json.dumps({"claim": claim, "value": round(kept, 3), "goal": ">= 0.9", "met": kept >= 0.9}))


def draw(kinds: dict[str, str], scores: Scores, path: Path) -> None:
    """Accuracy by length; 0K stands one step before 1K."""
    figure, axes = plt.subplots(figsize=(7.2, 4.4), dpi=140, layout="constrained")
    for entry, by_length in scores.items():
        places = [max(500, tokens_of(length)) for length in by_length]
        ours = kinds[entry] in OURS
        style = {"linewidth": 2.2 if ours else 1.4, "linestyle": "-" if ours else "--", "marker": "o", "markersize": 4}
        axes.plot(places, [100 * mean(v) for v in by_length.values()], label=title(entry, kinds), **style)  # type: ignore[arg-type]
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
    lengths = list(next(iter(scores.values())))
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
