"""The pipeline's bubble: how long stages wait, against (p - 1) / (m + p - 1).

    torchrun --nproc-per-node 2 benchmarks/pipeline.py

Every forward and backward of a micro-batch is timed on each stage; the timeline is drawn to
benchmarks/results/pipeline.png.  p stages, m micro-batches a step, one thread a stage, fp32.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import claim
from training.batches import MicroBatch, StepBatch
from training.config import RunConfig, parse_config
from training.distributed.topology import RankInfo, initialize
from training.engine import build_engine

MICRO_BATCHES, LENGTH, ROUNDS = 8, 512, 9
Event = tuple[str, float, float]  # what, begin and end in seconds
RESULTS = Path(__file__).resolve().parent / "results"


def config(stages: int) -> RunConfig:
    """Equal decoder layers on every stage, and a vocabulary so small that embedding and head count little."""
    return parse_config(
        {
            "run": {"name": "benchmark"},
            "data": {"path": "unused", "sequence_length": LENGTH},
            "model": {
                "vocab_size": 64,
                "hidden_size": 256,
                "num_layers": 4 * stages,
                "num_heads": 4,
                "num_kv_heads": 4,
                "ffn_size": 688,
                "segment_length": 128,
                "memory": {"kind": "lm2", "slots": 32, "heads": 4},
            },
            "phases": [
                {
                    "name": "only",
                    "memory": True,
                    "tokens": 10**6,
                    "tokens_per_step": MICRO_BATCHES * LENGTH,
                    "lr": {"peak": 1e-4},
                }
            ],
            "training": {"micro_batch_size": 1},
            "parallel": {"pipeline": stages},
        }
    )


def timed(events: list[Event], what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        begin = time.monotonic()
        out = function(*arguments, **named)
        events.append((what, begin, time.monotonic()))
        return out

    return run


def record(engine: Any) -> list[Event]:
    """Let the pipeline note when it computes what."""
    events: list[Event] = []
    instructions = dict(engine.ds._INSTRUCTION_MAP)
    for kind, function in instructions.items():
        if kind.__name__ in ("ForwardPass", "BackwardPass"):
            instructions[kind] = timed(events, kind.__name__, function)
    engine.ds._INSTRUCTION_MAP = instructions
    return events


def bubble(stages: list[list[Event]]) -> float:
    """Share of the stages' time between the first and the last piece of work that is spent waiting."""
    begin, end = min(e[1] for s in stages for e in s), max(e[2] for s in stages for e in s)
    busy = sum(e[2] - e[1] for s in stages for e in s)
    return 1 - busy / (len(stages) * (end - begin))


def draw(stages: list[list[Event]], title: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + 0.6 * len(stages)), layout="constrained")
    axes = figure.subplots()
    first = min(e[1] for s in stages for e in s)
    for stage, events in enumerate(stages):
        for what, color in (("ForwardPass", "C0"), ("BackwardPass", "C1")):
            bars = [((b - first) * 1e3, (e - b) * 1e3) for name, b, e in events if name == what]
            label = what.removesuffix("Pass").lower() if stage == 0 else None
            axes.broken_barh(bars, (stage - 0.4, 0.8), color=color, edgecolor="white", linewidth=0.5, label=label)
    axes.set(xlabel="ms", ylabel="stage", yticks=range(len(stages)), title=title)
    axes.invert_yaxis()
    axes.legend(loc="upper right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))


def main() -> None:
    torch.set_num_threads(1)
    info = RankInfo.discover()
    if info.world_size < 2:
        sys.exit("benchmarks/pipeline.py: start one rank a stage, such as torchrun --nproc-per-node 2 " + sys.argv[0])
    run = config(info.world_size)
    engine = build_engine(run, run.phases[0], initialize(run, info))
    ids = torch.randint(0, 64, (MICRO_BATCHES, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    documents = torch.zeros(1, LENGTH + 1, dtype=torch.int64)
    documents[:, 0] = -1
    batch = StepBatch(
        [MicroBatch(row[None, :-1], documents, row[None, 1:], torch.ones(1, LENGTH)) for row in ids.unbind()]
    )
    engine.train_step(batch, 1e-4)
    events, rounds = record(engine), []
    for _ in range(ROUNDS):
        events.clear()
        dist.barrier()
        engine.train_step(batch, 1e-4)
        stages: list[Any] = [None] * info.world_size
        dist.all_gather_object(stages, list(events))
        rounds.append(stages)
    if info.rank == 0:
        report(rounds)
    dist.destroy_process_group()


def report(rounds: list[list[list[Event]]]) -> None:
    stages = len(rounds[0])
    ideal = (stages - 1) / (MICRO_BATCHES + stages - 1)
    measured = statistics.median(bubble(r) for r in rounds)
    print(f"{stages} stages, {MICRO_BATCHES} micro-batches: bubble {measured:.3f}, (p-1)/(m+p-1) = {ideal:.3f}")
    middle = min(rounds, key=lambda r: abs(bubble(r) - measured))
    draw(middle, f"one step: bubble {measured:.1%} (ideal {ideal:.1%})", RESULTS / "pipeline.png")
    difference = abs(measured - ideal)
    claim("pipeline bubble minus (p-1)/(m+p-1), share of the step", difference, "<= 0.05", difference <= 0.05)


if __name__ == "__main__":
    main()
