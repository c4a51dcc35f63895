"""The plan's step time against the measured one, for three sizes of model, on this machine's CPU.

    OMP_NUM_THREADS=1 python benchmarks/plan.py

One rank with the threads torch has, fp32, our engine with ZeRO 1; the probe uses as many threads.  Both numbers are the
fastest of several taken in turns; with one thread they are seconds of that thread's work, so that a machine that does
other things beside can be measured too.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import claim
from training.batches import MicroBatch, StepBatch
from training.config import RunConfig, parse_config
from training.distributed.topology import RankInfo, initialize
from training.engine import build_engine
from training.planning.memory import ranks_of
from training.planning.probe import Cpu, clock
from training.planning.timing import step_time

LENGTH, SAMPLES, ROUNDS = 512, 4, 4
GOAL = 0.25  # of the measured time


def config_of(hidden: int, layers: int, segment: int, micro_batch: int, **memory: Any) -> RunConfig:
    """One phase of 2,048 tokens a step; heads of 32, feed-forward of 4 x hidden, a vocabulary of 16 x hidden."""
    return parse_config(
        {
            "run": {"name": "benchmark"},
            "data": {"path": "unused", "sequence_length": LENGTH},
            "model": {
                "vocab_size": 16 * hidden,
                "hidden_size": hidden,
                "num_layers": layers,
                "num_heads": hidden // 32,
                "num_kv_heads": hidden // 64,
                "ffn_size": 4 * hidden,
                "segment_length": segment,
                "tie_embeddings": True,
                "memory": memory or {"kind": "none"},
            },
            "phases": [
                {
                    "name": "only",
                    "memory": bool(memory),
                    "tokens": 10**6,
                    "tokens_per_step": SAMPLES * LENGTH,
                    "lr": {"peak": 1e-4},
                }
            ],
            "training": {"micro_batch_size": micro_batch},
        }
    )


CONFIGS = {
    "Llama, hidden 256, 4 layers": config_of(256, 4, LENGTH, micro_batch=4),
    "lm2, hidden 128, 4 layers": config_of(128, 4, 64, micro_batch=4, kind="lm2", slots=32, heads=4),
    "lm2, hidden 384, 6 layers": config_of(384, 6, 128, micro_batch=2, kind="lm2", slots=48, heads=8),
    "delta, hidden 256, 4 layers": config_of(256, 4, 128, micro_batch=4, kind="delta", heads=4),
}


def batch_of(config: RunConfig) -> StepBatch:
    """Random tokens, two documents packed in each sample, in micro-batches."""
    ids = torch.randint(0, config.model.vocab_size, (SAMPLES, LENGTH + 1))
    documents = (torch.arange(LENGTH) >= LENGTH // 3).long().repeat(SAMPLES, 1)
    parts = zip(*(x.split(config.training.micro_batch_size) for x in (ids, documents)), strict=True)
    ones = torch.ones(config.training.micro_batch_size, LENGTH)
    return StepBatch([MicroBatch(i[:, :-1], F.pad(d, (1, 0), value=-1), i[:, 1:], ones) for i, d in parts])


def measure(config: RunConfig) -> tuple[float, float]:
    """Seconds of a step, planned and measured in turns."""
    engine = build_engine(config, config.phases[0], initialize(config, RankInfo(0, 1, 0)))
    batch, planned, measured = batch_of(config), [], []
    engine.train_step(batch, 1e-4)
    for _ in range(ROUNDS):
        device = Cpu(ranks=1, threads=torch.get_num_threads())
        planned.append(step_time(config, config.phases[0], ranks_of(config, 1), device).seconds)
        begin = clock()
        engine.train_step(batch, 1e-4)
        measured.append(clock() - begin)
    engine.close()
    return min(planned), min(measured)


def main() -> None:
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} thread(s), {SAMPLES * LENGTH:,} tokens a step")
    results = {name: measure(config) for name, config in CONFIGS.items()}
    for name, (planned, measured) in results.items():
        print(f"{name:30s} planned {planned * 1e3:8.0f} ms, measured {measured * 1e3:8.0f} ms a step")
    for name, (planned, measured) in results.items():
        error = abs(planned / measured - 1)
        claim(f"error of the planned step time, {name}", error, f"<= {GOAL}", error <= GOAL)


if __name__ == "__main__":
    main()
