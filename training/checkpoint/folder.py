"""The checkpoints of a run: starting a save, waiting for it, choosing the one to continue from.

Tensors have canonical names, so any topology reads the checkpoints of any other. Each rank copies the share that ZeRO
gave it (`shards.py`, `staging.py`) and writes it while training goes on (`writer.py`). Only what the manifest confirms
is read again (`manifest.py`, `safe_reader.py`).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.parallel import is_sharded
from training.checkpoint.loading import RNG_KEY, check_shapes, load_weights, restore, stored_names
from training.checkpoint.manifest import (
    DamagedError,
    candidates,
    check_files,
    check_sizes,
    latest_checkpoint,
    nothing_whole,
    point,
)
from training.checkpoint.run_state import RunState, read_run_state
from training.checkpoint.safe_reader import read_metadata
from training.checkpoint.shards import TensorShard, boxes
from training.checkpoint.staging import Part, Staging
from training.checkpoint.writer import Writer, has_pointer
from training.distributed.devices import use_device
from training.distributed.topology import Topology
from training.engine import Engine
from training.errors import ConfigError, TrainingError

log = logging.getLogger("memtrain")

__all__ = [
    "CheckpointFolder",
    "RunState",
    "check_shapes",
    "latest_checkpoint",
    "load_weights",
    "read_run_state",
    "restore",
    "stored_names",
]


class CheckpointFolder:
    """The folder `checkpoints/` of one run. Every method is collective unless it says otherwise."""

    def __init__(
        self,
        folder: Path,
        topology: Topology,
        keep: tuple[int, int | None] | None = None,
        confirm: Callable[[], None] = lambda: None,
    ) -> None:
        """Open a run's checkpoints; write nothing. Collective.

        Args:
            folder: `checkpoints/` of the run.
            topology: process groups of this rank.
            keep: (number of newest checkpoints to keep, steps whose multiples are never deleted); None: keep all.
            confirm: called on rank 0 before the folder changes; raises when the run has another owner by now.
        """
        self.folder, self.topology, self.keep = folder, topology, keep
        self._group = dist.new_group(backend="gloo")  # a group of its own, because a thread uses it during training
        self._writer = Writer(folder, self._group, confirm)
        self._staging = Staging(topology.device)
        self._pool = ThreadPoolExecutor(1, "checkpoint", initializer=lambda: use_device(topology.device))
        self._pending: Future[Path] | None = None
        self.last: Path | None = None  # the newest checkpoint that is known to be whole
        self.held = 0.0  # seconds that training has waited for the copies of the last checkpoint

    def save(self, engine: Engine, state: RunState) -> Path:
        """Write `step-XXXXXXXX` and make it the latest; return its path when it is on disk. Collective."""
        self.start(engine, state)
        path = self.wait()
        assert path is not None
        return path

    def start(self, engine: Engine, state: RunState) -> None:
        """Start a thread that copies and writes this rank's share; the engine's next update waits for the copies.

        It first waits until the checkpoint before is written, and raises `TrainingError` on every rank when that one
        failed. Collective.
        """
        self.wait()
        started, copied = time.perf_counter(), threading.Event()
        parts, rng = list(self._parts(engine)), torch.get_rng_state()
        self._staging.begin()
        self._pending = self._pool.submit(self._write, parts, rng, copied, state)
        engine.before_next_update(lambda: self._hold(copied))
        self.held = time.perf_counter() - started

    def _hold(self, copied: threading.Event) -> None:
        started = time.perf_counter()
        copied.wait()
        self.held += time.perf_counter() - started

    def wait(self) -> Path | None:
        """Wait until the last checkpoint is on disk; return the newest one, None when there is none.

        Raises `TrainingError` on every rank when writing failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            self.last = pending.result()
        return self.last

    def _write(self, parts: list[Part], rng: Tensor, copied: threading.Event, state: RunState) -> Path:
        def share() -> list[TensorShard]:
            try:
                return list(self._boxes(parts, rng))
            finally:  # training goes on also after a failure, which `wait` raises on every rank
                copied.set()

        try:
            path = self._writer.write(share, state.step, asdict(state))
        except TrainingError as error:
            log.error("%s", error)
            raise
        log.info("saved %s", path)
        if self.keep:
            self._writer.prune(*self.keep)
        return path

    def _parts(self, engine: Engine) -> Iterator[Part]:
        """Yield the parts that this rank writes; a tensor that several ranks have is written by one. Collective."""
        elsewhere = self._written_by_earlier_stages(engine)
        for key, start, values in engine.own_state():
            name = key.partition("/")[0]
            if name not in elsewhere and values.numel():
                parameter = engine.parameters[name]
                dim = parameter.partition_dim if is_sharded(parameter) else None  # type: ignore[attr-defined]
                yield Part(key, engine.shapes[name], start, values, dim)

    def _boxes(self, parts: list[Part], rng: Tensor) -> Iterator[TensorShard]:
        """Yield copies of the parts as boxes of whole tensors, on the main rank also the random state."""
        tensor = self.topology.tensor
        for part, copy in zip(parts, self._staging.copy(parts), strict=True):
            yield from boxes(part.key, part.shape, part.start, copy, part.sharded_dim, tensor.rank, tensor.size)
        if self.topology.is_main:
            yield TensorShard(RNG_KEY, rng.size(), torch.Size([0]), rng)

    def _written_by_earlier_stages(self, engine: Engine) -> set[str]:
        """Return the names of tied weights that an earlier pipeline stage writes. Collective.

        Only one stage writes them, because ZeRO cuts them differently on each stage.
        """
        if self.topology.pipeline_size == 1:
            return set()
        everywhere: list[Any] = [None] * self.topology.info.world_size
        stage = self.topology.mesh.get_local_rank("pipeline")
        dist.all_gather_object(everywhere, (stage, list(engine.parameters)), group=self._group)
        return {name for other, names in everywhere if other < stage for name in names}

    def latest(self) -> Path | None:
        """Return the newest checkpoint whose files exist with the right sizes, or None. Not collective."""
        return latest_checkpoint(self.folder)

    def choose(self) -> Path | None:
        """Return the checkpoint to continue from, after checking its checksums; None when nothing was saved.

        When one is damaged, a warning is logged, the one before it is taken and the pointer is changed to it. Raises
        `TrainingError` when none is whole. Collective.
        """
        box: list[Any] = [list(candidates(self.folder)) if self.topology.is_main else None]
        dist.broadcast_object_list(box, src=0, group=self._group)
        problems: list[str] = []
        for path, pointer_problem in box[0]:
            problem = self._problem(path)
            problems += [text for text in (pointer_problem, problem) if text]
            if problem:
                continue
            if problems and self.topology.is_main:
                log.warning("damaged: %s; falling back to %s", "; ".join(problems), path)
                point(self.folder, path)
            self.last = path
            return path
        if problems or has_pointer(self.folder):
            raise nothing_whole(self.folder, problems)
        return None

    def check(self, path: Path) -> None:
        """Check every byte of another run's checkpoint. Raises `TrainingError` when it is damaged. Collective."""
        if problem := self._problem(path):
            raise TrainingError(
                f"init_from: {problem}; copy the checkpoint again, or use another; if it was fetched from an address, "
                "delete this copy, and it is fetched again"
            )

    def _problem(self, path: Path) -> str:
        """Return what is wrong with a checkpoint, empty when it is whole. Collective: each rank reads some files."""
        own = ""
        try:
            files = check_sizes(path)
            check_files(path, files, sorted(files)[self.topology.info.rank :: self.topology.info.world_size])
            read_metadata(path)
            read_run_state(path)
        except (DamagedError, ConfigError) as error:
            own = str(error)
        everywhere: list[Any] = [None] * self.topology.info.world_size
        dist.all_gather_object(everywhere, own, group=self._group)
        return next((text for text in everywhere if text), "")

    def prune(self, keep_last: int, keep_every: int | None) -> None:
        """Delete all but the newest `keep_last` checkpoints and those at multiples of `keep_every` steps.

        Not collective: only rank 0 acts.
        """
        self._writer.prune(keep_last, keep_every)

    def close(self) -> None:
        """Wait for the thread to finish writing, and end it. Not collective."""
        self._pool.shutdown(wait=True)
