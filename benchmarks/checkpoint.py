"""How long a checkpoint holds training, and how fast it is written, against the disk itself.

    python benchmarks/checkpoint.py [--folder DIR]

One rank, a model whose weights and moments are some hundred MB.  In turns: an asynchronous checkpoint (held: the time
until training goes on; written: until the pointer names it, checksums and fsyncs included) and as many bytes written
plainly to one file and synced, which is what the disk can do.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from claims import claim

from training.checkpoint import CheckpointFolder, RunState
from training.config import RunConfig, parse_config
from training.devices import keep_freed_memory
from training.engine import Engine, build_engine
from training.topology import RankInfo, initialize

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


def save(checkpoints: CheckpointFolder, engine: Engine, step: int) -> tuple[float, float, int]:
    """Seconds that training is held, seconds until it is on disk, bytes."""
    state = RunState(step, 0, 0, "memory", step, engine.optimizer_steps(), "", "", {}, {})
    started = time.perf_counter()
    checkpoints.start(engine, state)
    held = time.perf_counter() - started
    path = checkpoints.wait()
    written = time.perf_counter() - started
    assert path is not None
    size = sum(file.stat().st_size for file in path.iterdir())
    shutil.rmtree(path)
    return held, written, size


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
    run = config(options.hidden, options.layers)
    topology = initialize(run, RankInfo.discover())
    engine = build_engine(run, run.phases[0], topology)
    content = memoryview(b"")
    rows: list[tuple[float, ...]] = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="memtrain-checkpoint-") as scratch:
        checkpoints = CheckpointFolder(Path(scratch), topology)
        for number in range(options.rounds + 1):
            held, written, size = save(checkpoints, engine, number + 1)
            if len(content) != size:  # as much memory as a checkpoint is read from
                content = memoryview(torch.randint(0, 256, (size,), dtype=torch.uint8).numpy())
            plain, synced = plain_write(Path(scratch) / "plain", content)
            if number:
                rows.append((held, written, plain, synced))
                print(
                    f"{size / 1e6:,.0f} MB: held {1e3 * held:.0f} ms, written in {written:.2f} s "
                    f"({size / 1e6 / written:,.0f} MB/s); plainly in {plain:.2f} s ({size / 1e6 / plain:,.0f} MB/s), "
                    f"of which fsync {synced:.2f} s"
                )
        checkpoints.close()
    held, written, plain, synced = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"medians: held {1e3 * held:.0f} ms, written {written:.2f} s, plainly {plain:.2f} s (fsync {synced:.2f} s)")
    claim("checkpoint: time training is held / time to write", held / written, "<= 0.1", held / written <= 0.1)
    claim("checkpoint: write rate / the disk's own", plain / written, ">= 0.7", plain / written >= 0.7)


if __name__ == "__main__":
    main()
