"""Associative recall across segments: which memory binds a key to its value, and after how many steps.

    python experiments/recall.py                              every kind, 3 seeds, several questions a sample
    python experiments/recall.py --setting one                one question a sample: a sparse signal
    python experiments/recall.py --setting hard               16 pairs in 8 segments
    python experiments/recall.py --kinds delta lm2-time --seeds 0 --steps 1000
    python experiments/recall.py --plot-only                  table and PNG from what was measured before

Key-value pairs stand among noise in the first segments of 32 tokens; the last segment asks for them.  Attention sees
one segment, so only a memory can answer; `attention` sees everything and has none.  Model: 3 layers of width 96, batch
32, AdamW.  Every curve is appended to the results file, so runs can be spread over time and machines.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import claim
from model import LanguageModel, MemoryConfig, ModelConfig, build_model
from training.distributed.devices import keep_freed_memory

KEYS, VALUES, NOISE = 32, 16, 16  # three vocabularies; chance is 1/16
QUESTION = KEYS + VALUES + NOISE
SEGMENT, BATCH, GOAL = 32, 32, 0.95
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Setting:
    """pairs in `segments` segments; `questions` of them asked in one more."""

    pairs: int
    segments: int
    questions: int

    @property
    def length(self) -> int:
        return (self.segments + 1) * SEGMENT

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """ids int64 [count, L] and labels [count, L], -100 where nothing is asked."""
        span = self.segments * SEGMENT
        ids = KEYS + VALUES + torch.randint(0, NOISE, (count, self.length), generator=generator)
        labels = torch.full_like(ids, -100)
        rows = torch.arange(count).unsqueeze(1)
        keys = torch.rand(count, KEYS, generator=generator).argsort(1)[:, : self.pairs]
        values = KEYS + torch.randint(0, VALUES, (count, self.pairs), generator=generator)
        # a pair is two neighbours inside a segment: places are even positions
        places = 2 * torch.rand(count, span // 2, generator=generator).argsort(1)[:, : self.pairs]
        ids[rows, places], ids[rows, places + 1] = keys, values
        asked = torch.rand(count, self.pairs, generator=generator).argsort(1)[:, : self.questions]
        spots = span + 2 * torch.rand(count, SEGMENT // 2, generator=generator).argsort(1)[:, : self.questions]
        ids[rows, spots], ids[rows, spots + 1] = QUESTION, keys.gather(1, asked)
        labels[rows, spots + 1] = values.gather(1, asked)
        return ids, labels


SETTINGS = {"one": Setting(3, 3, 1), "several": Setting(3, 3, 3), "hard": Setting(16, 8, 8)}
MEMORIES: dict[str, dict[str, object]] = {
    "attention": {"kind": "none"},
    "delta": {"kind": "delta", "heads": 2},
    "lm2-time": {"kind": "lm2", "flow": "time", "slots": 32, "heads": 2},
    "lm2-depth": {"kind": "lm2", "flow": "depth", "heads": 2},
    "rmt": {"kind": "rmt", "slots": 16, "rmt_open": 1.0},
}


def build(kind: str, setting: Setting, seed: int) -> LanguageModel:
    """The probe's model; `attention` has one segment as long as the sample."""
    memory = MemoryConfig.model_validate(MEMORIES[kind])
    config = ModelConfig(
        vocab_size=QUESTION + 1,
        hidden_size=96,
        num_layers=3,
        num_heads=4,
        num_kv_heads=4,
        ffn_size=256,
        segment_length=setting.length if kind == "attention" else SEGMENT,
        memory=memory,
    )
    return build_model(config, seed=seed)


@torch.no_grad()
def accuracy(net: LanguageModel, ids: Tensor, labels: Tensor) -> float:
    """Share of the questions answered."""
    parts = zip(ids.split(64), labels.split(64), strict=True)
    right = [(net(i).logits.argmax(-1)[y >= 0] == y[y >= 0]).float() for i, y in parts]
    return float(torch.cat(right).mean())


def run(kind: str, setting_name: str, seed: int, steps: int, lr: float) -> dict[str, Any]:
    """Train one model; accuracy every 100 steps, until the goal holds three times, or `steps`."""
    torch.set_num_threads(1)
    keep_freed_memory()
    setting = SETTINGS[setting_name]
    generator = torch.Generator().manual_seed(seed)
    held_out = setting.sample(512, torch.Generator().manual_seed(10**6))
    net = build(kind, setting, seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    curve, started = [], time.perf_counter()
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, step / 100)
        ids, labels = setting.sample(BATCH, generator)
        loss = F.cross_entropy(net(ids).logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps:
            curve.append((step, round(accuracy(net, *held_out), 4)))
            if len(curve) > 2 and min(a for _, a in curve[-3:]) >= GOAL:
                break
    seconds = round(time.perf_counter() - started)
    result = {"kind": kind, "setting": setting_name, "seed": seed, "lr": lr, "curve": curve, "seconds": seconds}
    return result | {"parameters": sum(p.numel() for p in net.parameters())}


def reached(curve: list[tuple[int, float]]) -> int | None:
    """First step with the goal's accuracy."""
    return next((step for step, value in curve if value >= GOAL), None)


def load(path: Path) -> list[dict[str, object]]:
    """Newest result of each (kind, setting, seed)."""
    found: dict[tuple[object, ...], dict[str, object]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        result = json.loads(line)
        found[(result["kind"], result["setting"], result["seed"])] = result
    return list(found.values())


def report(results: list[dict], setting: str, image: Path) -> None:
    """Print the table, draw the curves, state the claim."""
    chosen = [r for r in results if r["setting"] == setting]
    kinds = [k for k in MEMORIES if any(r["kind"] == k for r in chosen)]
    marks = (500, 1000, 2000, 3000, 5000)
    print(f"\nsetting {setting}: accuracy at step (mean over seeds); step at which {GOAL} was reached, each seed")
    print(f"{'kind':24s}" + "".join(f"{m:>8d}" for m in marks) + "   reached       parameters")
    at_goal: dict[str, list[int | None]] = {}
    for kind in kinds:
        runs = [r for r in chosen if r["kind"] == kind]
        means = [sum(max((a for s, a in r["curve"] if s <= m), default=0.0) for r in runs) / len(runs) for m in marks]
        at_goal[kind] = [reached(r["curve"]) for r in runs]
        # a run that reached the goal was stopped; beyond what was run of the others nothing is claimed
        measured = max(m if reached(r["curve"]) else r["curve"][-1][0] for r in runs for m in marks)
        cells = "".join(
            f"{mean:8.3f}" if mark <= measured else f"{'-':>8s}" for mark, mean in zip(marks, means, strict=True)
        )
        print(f"{kind:24s}{cells}   {at_goal[kind]}  {runs[0]['parameters']:,}")
    plot(chosen, kinds, setting, image)
    for kind in kinds:
        final = [max(a for _, a in r["curve"]) for r in chosen if r["kind"] == kind]
        mean = sum(final) / len(final)
        name = f"recall ({setting}), {kind}, best within the steps run, {len(final)} seeds"
        claim(name, mean, f">= {GOAL}", mean >= GOAL)


def plot(chosen: list[dict], kinds: list[str], setting: str, image: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    for number, kind in enumerate(kinds):
        for index, result in enumerate(r for r in chosen if r["kind"] == kind):
            steps, values = zip(*result["curve"], strict=True)
            axes.plot(steps, values, color=f"C{number}", alpha=0.85, label=kind if index == 0 else None)
    axes.axhline(GOAL, color="grey", linewidth=0.8, linestyle="--")
    axes.axhline(1 / SETTINGS[setting].pairs, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="step", ylabel="accuracy", ylim=(0, 1.02), title=f"associative recall across segments: {setting}")
    axes.text(0, 1 / SETTINGS[setting].pairs, " any value of the sample", va="bottom", color="grey", fontsize=8)
    axes.legend(loc="lower right")
    FigureCanvasAgg(figure).print_png(str(image))
    print(f"curves: {image}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(MEMORIES), choices=list(MEMORIES), metavar="KIND")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--setting", default="several", choices=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--results", type=Path, default=RESULTS / "recall.jsonl")
    parser.add_argument("--plot-only", action="store_true")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    if not options.plot_only:
        jobs = [(k, options.setting, s, options.steps, options.lr) for s in options.seeds for k in options.kinds]
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(options.workers, mp_context=context) as pool:
            for future in concurrent.futures.as_completed([pool.submit(run, *job) for job in jobs]):
                result = future.result()
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")
                kind, seed, curve = (result[key] for key in ("kind", "seed", "curve"))
                print(f"{kind} seed {seed}: {curve[-1]}, {result['seconds']} s", flush=True)
    report(load(options.results), options.setting, options.results.with_name(f"recall-{options.setting}.png"))


if __name__ == "__main__":
    main()
