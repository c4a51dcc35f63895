"""Checkpoints: torch.distributed.checkpoint under canonical names, so any topology reads any other's.

Each rank writes the share that ZeRO gave it (`checkpoint_share.py`), beside training (`checkpoint_writer.py`), and only
what its manifest confirms is read again (`checkpoint_files.py`, `safe_reader.py`).
"""

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model.parallel import is_sharded
from training.checkpoint_files import (
    DamagedError,
    candidates,
    check_files,
    check_sizes,
    latest_checkpoint,
    nothing_whole,
    point,
)
from training.checkpoint_load import RNG_KEY, check_shapes, load_weights, restore, stored_names
from training.checkpoint_share import Box, Staging, boxes
from training.checkpoint_writer import Writer, has_pointer
from training.engine import Engine
from training.errors import ConfigError, TrainingError
from training.run_state import RunState, read_run_state
from training.safe_reader import read_metadata
from training.topology import Topology

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
    """`checkpoints/` of one run.  Every method is collective unless it says otherwise."""

    def __init__(self, folder: Path, topology: Topology, keep: tuple[int, int | None] | None = None) -> None:
        """keep: (newest checkpoints that are kept, steps whose multiples are kept for ever); None: all."""
        self.folder, self.topology, self.keep = folder, topology, keep
        self._group = dist.new_group(backend="gloo")  # of its own: it is used beside training
        self._writer = Writer(folder, self._group)
        self._staging = Staging()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None
        self.last: Path | None = None  # the newest one that is known to be whole

    def save(self, engine: Engine, state: RunState) -> Path:
        """Write `step-XXXXXXXX` and point `latest` at it; returns when it is on disk."""
        self.start(engine, state)
        path = self.wait()
        assert path is not None
        return path

    def start(self, engine: Engine, state: RunState) -> None:
        """Copy this rank's share and let a thread write it; waits for the checkpoint before, if that is not written.

        Raises `TrainingError` on every rank when the one before failed.
        """
        self.wait()
        share = list(self._share(engine))
        self._pending = self._pool.submit(self._write, share, state)

    def wait(self) -> Path | None:
        """The newest checkpoint, once it is on disk.  Raises `TrainingError` on every rank when it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self.last = pending.result()
        return self.last

    def _write(self, share: list[Box], state: RunState) -> Path:
        try:
            path = self._writer.write(share, state.step, asdict(state))
        except TrainingError as error:
            log.error("%s", error)
            raise
        log.info("saved %s", path)
        if self.keep:
            self._writer.prune(*self.keep)
        return path

    def _share(self, engine: Engine) -> Iterator[Box]:
        """Copies of this rank's boxes; several ranks' equal ones are written once."""
        tensor, elsewhere = self.topology.tensor, self._written_by_earlier_stages(engine)
        self._staging.begin()
        for key, start, values in engine.own_state():
            name = key.partition("/")[0]
            if name in elsewhere or not values.numel():
                continue
            parameter = engine.parameters[name]
            dim = parameter.partition_dim if is_sharded(parameter) else None  # type: ignore[attr-defined]
            copy = self._staging.copy(key, values)
            yield from boxes(key, engine.shapes[name], start, copy, dim, tensor.rank, tensor.size)
        if self.topology.is_main:
            rng = torch.get_rng_state()
            yield Box(RNG_KEY, rng.size(), torch.Size([0]), rng)
        self._staging.end()

    def _written_by_earlier_stages(self, engine: Engine) -> set[str]:
        """Tied weights: the first stage that has them writes them, for ZeRO cuts them differently on each."""
        if self.topology.pipeline_size == 1:
            return set()
        everywhere: list[Any] = [None] * self.topology.info.world_size
        stage = self.topology.mesh.get_local_rank("pipeline")
        dist.all_gather_object(everywhere, (stage, list(engine.parameters)), group=self._group)
        return {name for other, names in everywhere if other < stage for name in names}

    def latest(self) -> Path | None:
        """The newest checkpoint whose files have their sizes, or None.  Not collective."""
        return latest_checkpoint(self.folder)

    def choose(self) -> Path | None:
        """The checkpoint to continue from, every byte of it checked; None when nothing was saved.

        A damaged one is said aloud and the one before it taken; the pointer then names that.  Raises `TrainingError`
        when none is whole.
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
        """Every byte of a checkpoint of another run.  Raises `TrainingError` when it is damaged."""
        if problem := self._problem(path):
            raise TrainingError(f"init_from: {problem}; copy the checkpoint again, or use another")

    def _problem(self, path: Path) -> str:
        """What is wrong with a checkpoint, or nothing; the ranks share the reading."""
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
        """Delete all but the newest `keep_last` checkpoints and those at multiples of `keep_every` steps."""
        self._writer.prune(keep_last, keep_every)

    def close(self) -> None:
        """End the thread.  Not collective; what it still writes is waited for."""
        self._pool.shutdown(wait=True)
