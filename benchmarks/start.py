"""What a start costs one of many ranks: initial weights, and a resume, at the shapes of a configuration.

    python benchmarks/start.py --config configs/lm2_1.7b.yaml --ranks 8 --folder /tmp/start

Ranks share every layer (parallel.tensor). One rank after another runs in a process of its own, through the same code as
in training; torch's `fake` backend stands in for the others, so nothing is communicated. Seconds are the process's own
work. Memory is what is added to the process after its imports. The checkpoint holds zeros, each tensor whole, as one
rank writes it; its file for 1.6 B parameters takes 20 GB of the disk: --layers makes it smaller.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.testing._internal.distributed.fake_pg import FakeStore

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import model.initialization
from benchmarks.claims import claim
from model import LanguageModel
from training.checkpoint.loading import restore, stored_names
from training.checkpoint.manifest import STATE_FILE
from training.checkpoint.run_state import RunState
from training.checkpoint.shards import SharePlanner, TensorShard
from training.checkpoint.storage import Storage
from training.config import RunConfig, load_config
from training.distributed.ranks import RankInfo
from training.distributed.topology import Topology, initialize
from training.engine import build_engine, moment_keys


def run_config(options: argparse.Namespace) -> RunConfig:
    """The configuration, its layers shared by all ranks."""
    changes = [f"parallel.tensor={options.ranks}", "training.zero_stage=1"]
    changes += [f"model.num_layers={options.layers}"] if options.layers else []
    return load_config(options.config, changes)


def rank_of(config: RunConfig, options: argparse.Namespace) -> Topology:
    """This process as one of the ranks, alone."""
    info = RankInfo(options.rank, options.ranks, 0)
    info.export()
    dist.init_process_group("fake", store=FakeStore(), rank=info.rank, world_size=info.world_size)
    return initialize(config, info)


class Measured:
    """Seconds of work, bytes of memory added at the peak and bytes read inside the context."""

    def __enter__(self) -> "Measured":
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._process = psutil.Process()
        self._memory, self._read = self._process.memory_info().rss, self._process.io_counters().read_chars
        self._started, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
        self.result = {
            "seconds": time.process_time() - self._started,
            "wall": time.perf_counter() - self._wall,
            "memory": peak - self._memory,
            "read": self._process.io_counters().read_chars - self._read,
        }


def draw(config: RunConfig, topology: Topology, whole: bool) -> dict[str, float]:
    """One rank's model with its initial weights; whole: each tensor is drawn whole and then cut."""
    if whole:
        model.initialization.GRAIN = sys.maxsize  # no shard begins and ends on a multiple of it
    with Measured() as measured:
        net = LanguageModel(config.model, topology.parallel)
        net.initialize(config.run.seed)
    return measured.result | {"shard": sum(4 * p.numel() for p in net.parameters())}


def resume(config: RunConfig, topology: Topology, checkpoint: Path) -> dict[str, float]:
    """One rank's engine, brought to the checkpoint."""
    stored = stored_names(checkpoint)
    with Measured() as building:
        engine = build_engine(config, config.phases[-1], topology, stored)
    with Measured() as measured:
        restore(engine, checkpoint, topology, moments=True, rng=False)
    shard = sum(4 * values.numel() for _, _, values in engine.memory_to_load(stored, moments=True))
    names = {"building": building.result["seconds"], "building_memory": building.result["memory"], "shard": shard}
    return measured.result | names


def write_checkpoint(config: RunConfig, folder: Path) -> None:
    """Weights and moments of the whole model, all zero, read from a file without blocks: they take no memory."""
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in LanguageModel(config.model).named_parameters()}
    largest = max(shape.numel() for shape in shapes.values())
    folder.mkdir(parents=True)
    zeros = folder.with_suffix(".zeros")
    with zeros.open("wb") as file:
        file.truncate(4 * largest)
    values = torch.from_file(str(zeros), shared=False, size=largest)
    boxes = [
        TensorShard(key, shape, torch.Size([0] * len(shape)), values[: shape.numel()].view(shape))
        for name, shape in shapes.items()
        for key in (name, *moment_keys(name))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DCP's, of typed storage and of a single process
        dcp.save({}, storage_writer=Storage(folder), planner=SharePlanner(boxes), no_dist=True)
    state = RunState(1, 0, 0, config.phases[-1].name, 1, {}, "", "", {}, {})
    (folder / STATE_FILE).write_text(json.dumps(asdict(state)))
    zeros.unlink()


def child(options: argparse.Namespace, rank: int, what: str) -> dict[str, Any]:
    """What a process of its own measures."""
    command = [sys.executable, __file__, "--config", str(options.config), "--ranks", str(options.ranks)]
    command += ["--folder", str(options.folder), "--layers", str(options.layers), "--rank", str(rank), "--what", what]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    gib = {key: f"{value / 2**30:.2f} GiB" for key, value in found.items() if key in ("memory", "read", "shard")}
    print(f"rank {rank} of {options.ranks}, {what}: {found['seconds']:.1f} s of work, {gib}", flush=True)
    return found


def main() -> None:
    """Measure the first and the last rank; the last skips most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/lm2_1.7b.yaml"), metavar="FILE")
    parser.add_argument("--ranks", type=int, default=8, metavar="N")
    parser.add_argument("--layers", type=int, default=0, metavar="N", help="decoder layers; 0: the configuration's")
    parser.add_argument("--folder", type=Path, required=True, metavar="FOLDER", help="where the checkpoint is written")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=["whole", "shard", "resume"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = run_config(options)
    checkpoint = options.folder / f"checkpoint-{config.model.num_layers}-layers"
    if options.what:
        topology = rank_of(config, options)
        resumes = options.what == "resume"
        found = resume(config, topology, checkpoint) if resumes else draw(config, topology, options.what == "whole")
        print(json.dumps(found))
        return
    ranks = sorted({0, options.ranks - 1})
    whole, shard = ([child(options, rank, what) for rank in ranks] for what in ("whole", "shard"))
    if not checkpoint.exists():
        write_checkpoint(config, checkpoint)
    resumed = [child(options, rank, "resume") for rank in ranks]
    faster = min(w["seconds"] / s["seconds"] for w, s in zip(whole, shard, strict=True))
    peak = max(s["memory"] / s["shard"] for s in shard)
    read = max(r["read"] / r["shard"] for r in resumed)
    claim("initial weights: time of drawing whole tensors over time of drawing shards", faster, ">= 4", faster >= 4)
    claim("initial weights: peak memory of a rank over its shard", peak, "<= 1.2", peak <= 1.2)
    claim("resume: bytes that a rank reads over its shard's", read, "<= 1.1", read <= 1.1)


if __name__ == "__main__":
    main()
