"""How long a checkpoint holds training, and how fast it is written, against the disk itself.

    python benchmarks/checkpoint.py [--folder DIR]

One rank, a model whose weights and moments are some hundred MB.  In turns: a training step; a step with a checkpoint
beside it (held: the time that training waits, before it goes on and before its update; the step is also slower where
both share cores and memory); a checkpoint alone (written: until the pointer names it, checksums and fsyncs included);
and as many bytes written plainly to one file and synced, which is what the disk can do.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, astuple, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import claim
from training.batches import MicroBatch, StepBatch
from training.checkpoint.folder import CheckpointFolder, RunState
from training.config import RunConfig, parse_config
from training.distributed.devices import keep_freed_memory, keep_imports
from training.distributed.topology import RankInfo, initialize
from training.engine import Engine, build_engine

CHUNK = 8 << 20  # bytes of a plain write


def config(hidden: int, layers: int) -> RunConfig:
    """A Llama with a memory; nothing is read from `data`."""
    raw: dict[str, Any] = {
        "run": {"name": "checkpoint"},
        "data": {"path": "unused", "sequence_length": 128},
        "model": {
            "vocab_size": 8192,
            "hidden_size": hidden,
            "num_layers": layers,
            "num_heads": 8,
            "num_kv_heads": 4,
            "ffn_size": 3 * hidden,
            "segment_length": 64,
            "tie_embeddings": True,
            "memory": {"kind": "lm2", "slots": 16, "heads": 4},
        },
        "phases": [{"name": "memory", "memory": True, "tokens": 128, "tokens_per_step": 128, "lr": {"peak": 1e-3}}],
        "training": {"micro_batch_size": 1},
    }
    return parse_config(raw)


def plain_write(path: Path, content: memoryview) -> tuple[float, float]:
    """Seconds to write `content` to one file, and of these the seconds that the sync took."""
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for begin in range(0, len(content), CHUNK):
            file.write(content[begin : begin + CHUNK])
        written = time.perf_counter()
        os.fsync(file.fileno())
    ended = time.perf_counter()
    path.unlink()
    return ended - started, ended - written


def random_batch(config: RunConfig) -> StepBatch:
    """One step's tokens."""
    length = config.data.sequence_length
    ids = torch.randint(0, config.model.vocab_size, (1, length + 1))
    return StepBatch([MicroBatch(ids[:, :-1], torch.zeros_like(ids), ids[:, 1:], torch.ones(1, length))])


@dataclass(frozen=True)
class Round:
    """Seconds."""

    step: float
    held: float
    step_beside: float  # held included
    written_beside: float
    written: float
    plain: float
    plain_sync: float


def measure(checkpoints: CheckpointFolder, engine: Engine, batch: StepBatch, number: int) -> tuple[list[float], int]:
    """The first five of a round's seconds, and a checkpoint's bytes."""
    seconds = [time.perf_counter()]

    def lap() -> None:
        seconds.append(time.perf_counter())

    def state(step: int) -> RunState:
        return RunState(step, 0, 0, "memory", step, engine.optimizer_steps(), "", "", {}, {})

    engine.train_step(batch, 1e-4)
    lap()
    beside, alone = state(2 * number), state(2 * number + 1)
    lap()
    checkpoints.start(engine, beside)
    engine.train_step(batch, 1e-4)
    lap()
    first, held = checkpoints.wait(), checkpoints.held
    lap()
    second = checkpoints.save(engine, alone)
    lap()
    assert first is not None
    size = sum(file.stat().st_size for file in second.iterdir())
    for path in (first, second):
        shutil.rmtree(path)
    step, _, beside_step, rest, written = (after - before for before, after in pairwise(seconds))
    return [step, held, beside_step, beside_step + rest, written], size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=None, help="a folder on the disk to measure (default: temporary)"
    )
    parser.add_argument("--hidden", type=int, default=512, help="width of the model")
    parser.add_argument("--layers", type=int, default=12, help="layers of the model")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one that is not")
    options = parser.parse_args()
    keep_freed_memory()
    keep_imports()
    run = config(options.hidden, options.layers)
    topology = initialize(run, RankInfo.discover())
    engine = build_engine(run, run.phases[0], topology)
    batch, content = random_batch(run), memoryview(b"")
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="memtrain-checkpoint-") as scratch:
        checkpoints = CheckpointFolder(Path(scratch), topology)
        for number in range(options.rounds + 1):
            seconds, size = measure(checkpoints, engine, batch, number + 1)
            if len(content) != size:  # as much memory as a checkpoint is read from
                content = memoryview(torch.randint(0, 256, (size,), dtype=torch.uint8).numpy().data)
            found = Round(*(*seconds, *plain_write(Path(scratch) / "plain", content)))
            if number:
                rounds.append(found)
                print(
                    f"{size / 1e6:,.0f} MB: held {1e3 * found.held:.0f} ms, a step {found.step_beside:.2f} s "
                    f"instead of {found.step:.2f} s, written beside it in {found.written_beside:.2f} s; alone in "
                    f"{found.written:.2f} s ({size / 1e6 / found.written:,.0f} MB/s); plainly in {found.plain:.2f} s "
                    f"({size / 1e6 / found.plain:,.0f} MB/s), of which fsync {found.plain_sync:.2f} s"
                )
        checkpoints.close()
    best, middle = (
        Round(*(of(column) for column in zip(*map(astuple, rounds), strict=True))) for of in (min, statistics.median)
    )
    for name, found in (("best", best), ("medians", middle)):
        print(f"{name}, s:", ", ".join(f"{field} {value:.3f}" for field, value in asdict(found).items()))
    held, rate = middle.held / middle.written, middle.plain / middle.written
    claim("checkpoint: time training is held / time to write", held, "<= 0.1", held <= 0.1)
    claim("checkpoint: write rate / the disk's own", rate, ">= 0.7", rate >= 0.7)


if __name__ == "__main__":
    main()
