"""Attempts of a run: real ranks of the main job, forked from a process that has the imports, to be killed and followed.

An attempt differs from `deepspeed launchers/pretrain.py` in who starts the ranks, and in that a test may inject faults.
"""

import contextlib
import json
import multiprocessing as mp
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import yaml

from tests.distributed.spawn import PRELOADED, free_port
from tests.e2e.commands import PRETRAIN, environment
from training.checkpoint.manifest import latest_checkpoint
from training.checkpoint.safe_reader import SafeReader, read_metadata

Fault = Callable[[], None]  # called in every rank before the main job
LENGTH, SAMPLES = 32, 8


@dataclass(frozen=True)
class Site:
    """A folder with a configuration, where runs live."""

    folder: Path

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    @classmethod
    def make(cls, folder: Path, data: Path, steps: int, every: int = 4) -> "Site":
        """A model so small that starting it takes longer than training it."""
        tokens = LENGTH * SAMPLES

        def phase(name: str, memory: bool, count: int) -> dict[str, Any]:
            return {"name": name, "memory": memory, "tokens": count * tokens, "tokens_per_step": tokens} | {
                "lr": {"peak": 3e-3, "warmup_tokens": 2 * tokens}
            }

        config = {
            "run": {"name": "tiny", "output_dir": "runs"},
            "data": {"path": str(data), "sequence_length": LENGTH},
            "model": {
                "vocab_size": 512,
                "hidden_size": 16,
                "num_layers": 2,
                "num_heads": 4,
                "num_kv_heads": 2,
                "ffn_size": 32,
                "segment_length": 8,
                "tie_embeddings": True,
                "memory": {"kind": "lm2", "slots": 4, "heads": 2},
            },
            "phases": [phase("warmup", False, steps // 2), phase("memory", True, steps - steps // 2)],
            "training": {"micro_batch_size": 2, "eval_samples": 4},
            "checkpoint": {"every_steps": every, "keep_last": 2},
            "tracking": {"enabled": False},
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return cls(folder)


@dataclass
class Attempt:
    """One start of a run on several ranks."""

    site: Site
    name: str
    processes: list[ForkServerProcess]
    outputs: list[Path]
    codes: list[int] = field(default_factory=list)

    @property
    def run_folder(self) -> Path:
        return self.site.run(self.name)

    def pid(self, rank: int) -> int:
        pid = self.processes[rank].pid
        assert pid is not None
        return pid

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one rank, if it still is."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid(rank), number)

    @property
    def over(self) -> bool:
        return any(not process.is_alive() for process in self.processes)

    def follow(self, seconds: float = 120) -> list[int]:
        """To the end of all ranks, as a launcher does: when one failed, the others are given time to end, then killed.

        Raises `TimeoutError` when they neither end nor fail.
        """
        deadline, left = time.monotonic() + seconds, list(self.processes)
        while left:
            timeout = deadline - time.monotonic()
            done = wait([process.sentinel for process in left], timeout=max(0.0, timeout))
            if not done:
                self.kill()
                if not any(process.exitcode for process in self.processes if process not in left):
                    raise TimeoutError(f"run {self.name}: ranks still run after {seconds} s\n{self.text()}")
            left = [process for process in left if process.exitcode is None]
            if any(process.exitcode not in (0, None) for process in self.processes):
                deadline = min(deadline, time.monotonic() + 30)
        self.codes = [int(process.exitcode or 0) for process in self.processes]
        return self.codes

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def text(self) -> str:
        """What all ranks printed."""
        return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in self.outputs)


@contextlib.contextmanager
def attempt(
    site: Site, name: str, *overrides: str, ranks: int = 2, fault: Fault | None = None, output: str = ""
) -> Iterator[Attempt]:
    """Run an attempt of run `name`; its processes are gone afterwards. Their output is in files that `output` names."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port, outputs, processes = free_port(), [], []
    for rank in range(ranks):
        env = environment({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)})
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        outputs.append(site.folder / f"{output or name}-{rank}.txt")
        arguments = ["--config", "tiny.yaml", f"run.name={name}", *overrides]
        processes.append(context.Process(target=_rank, args=(site.folder, arguments, env, outputs[-1], fault)))
    for process in processes:
        process.start()
    started = Attempt(site, name, processes, outputs)
    try:
        yield started
    finally:
        started.kill()


def _rank(folder: Path, arguments: list[str], env: dict[str, str], output: Path, fault: Fault | None) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(target, number)
    torch.set_num_threads(1)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # nohup, or the forkserver, ignores some of them
        signal.signal(signum, signal.SIG_DFL)
    if fault is not None:
        fault()
    sys.argv = [str(PRETRAIN), *arguments]
    runpy.run_path(str(PRETRAIN), run_name="__main__")


def through(
    site: Site, name: str, *overrides: str, ranks: int = 2, fault: Fault | None = None, output: str = ""
) -> Attempt:
    """Run an attempt to its own end."""
    with attempt(site, name, *overrides, ranks=ranks, fault=fault, output=output) as started:
        started.follow()
        return started


def steps_so_far(run_folder: Path) -> int:
    """The last step that metrics.jsonl has."""
    path = run_folder / "metrics.jsonl"
    try:
        lines = path.read_bytes().rpartition(b"\n")[0].splitlines()
    except FileNotFoundError:
        return 0
    return max((json.loads(line)["step"] for line in lines[-3:]), default=0)


def tensors(run_folder: Path) -> dict[str, torch.Tensor]:
    """Everything that the run's latest checkpoint holds."""
    latest = latest_checkpoint(run_folder / "checkpoints")
    assert latest is not None, run_folder
    stored: dict[str, Any] = read_metadata(latest).state_dict_metadata
    values = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in stored.items()}
    dcp.load(values, storage_reader=SafeReader(latest), no_dist=True)  # type: ignore[arg-type]
    return values


def difference(run_folder: Path, reference: Path) -> str:
    """The first tensor of the latest checkpoints that is not bit-identical, or nothing."""
    own, other = tensors(run_folder), tensors(reference)
    if own.keys() != other.keys():
        return f"names differ: {sorted(own.keys() ^ other.keys())[:3]}"
    return next((name for name, value in own.items() if not torch.equal(value, other[name])), "")
