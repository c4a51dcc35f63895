"""Writes checkpoints while training goes on: each rank its share, then manifest, rename and pointer, all or nothing.

A kill at any moment leaves a valid state because of the order: shares into a hidden folder, sync of every file, the
manifest, the rename to `step-XXXXXXXX`, the pointer. Everything here may run in a thread, because it uses a process
group of its own. A failure on one rank raises the same error on all.
"""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from data_prep.errors import one_line
from data_prep.files import sync
from training.checkpoint.manifest import (
    POINTER,
    STATE_FILE,
    DamagedError,
    FileEntry,
    point,
    pointed,
    step_of,
    steps_of,
    write_manifest,
)
from training.checkpoint.shards import SharePlanner, TensorShard
from training.checkpoint.storage import Storage, without_crc32
from training.errors import TrainingError

log = logging.getLogger("memtrain")

PARTIAL, TRASH = ".partial", ".trash"
_SPARE = 64 << 20  # bytes that must stay free for logs and metrics


class Writer:
    """Writes checkpoints into `folder`. Its methods are collective over `group`, except where they say otherwise."""

    def __init__(self, folder: Path, group: dist.ProcessGroup, confirm: Callable[[], None] = lambda: None) -> None:
        """Open no file yet.

        confirm: called on the main rank before the folder changes; raises when the run has another owner.
        """
        self.folder, self.group, self._confirm = folder, group, confirm
        self.is_main = group.rank() == 0
        self._step = 0  # of the checkpoint being written

    def write(self, share: Callable[[], list[TensorShard]], step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint of step `step` and make it the latest; return its folder. Collective.

        Args:
            share: returns this rank's tensors; called once, before anything else.
            step: number of the step.
            state: content of `state.json`.

        Raises:
            TrainingError: on every rank, when it failed on any; the latest checkpoint is then unchanged.
        """
        self._step, final = step, self.folder / f"step-{step:08d}"
        aside = self.folder / f".{final.name}{PARTIAL}"
        own: list[TensorShard] = []

        def copied() -> int:
            own.extend(share())
            return sum(box.values.nbytes for box in own)

        sizes = self._together(copied)
        self._on_main(lambda: self._prepare(aside, sum(sizes)))
        storage = Storage(aside)
        try:
            with without_crc32():
                dcp.save({}, storage_writer=storage, planner=SharePlanner(own), process_group=self.group)
        except (Exception, dcp.CheckpointException) as error:  # DCP gathers what failed on any rank
            self._on_main(lambda: shutil.rmtree(aside, ignore_errors=True))
            raise TrainingError(self._failed(_cause(error))) from None
        entries = self._together(lambda: storage.entries)
        try:
            self._on_main(lambda: self._publish(aside, final, entries, state))
        except TrainingError:
            self._on_main(lambda: shutil.rmtree(aside, ignore_errors=True))  # frees space on a full disk
            raise
        return final

    def _prepare(self, aside: Path, needed: int) -> None:
        """Make a new empty folder `aside`, after removing what killed attempts left.

        Raises `OSError` when the disk has less than `needed` bytes free.
        """
        self._confirm()
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(f".step-*{PARTIAL}"):
            shutil.rmtree(path)
        for path in self.folder.glob(f".{POINTER}.tmp-*"):
            path.unlink()
        free = shutil.disk_usage(self.folder).free
        if free < needed + _SPARE:
            raise OSError(f"it needs {needed / 1e6:,.0f} MB, but {free / 1e6:,.0f} MB are free on its disk")
        aside.mkdir()

    def _publish(self, aside: Path, final: Path, entries: list[dict[str, FileEntry]], state: dict[str, Any]) -> None:
        """Make the written shares in `aside` the latest checkpoint `final`: state, manifest, rename, pointer."""
        path = aside / STATE_FILE
        path.write_text(json.dumps(state, indent=1), encoding="utf-8")
        sync(path)
        files = {name: entry for part in entries for name, entry in part.items()} | {STATE_FILE: FileEntry.of(path)}
        for name, entry in files.items():
            if not (aside / name).is_file() or (aside / name).stat().st_size != entry.bytes:
                raise OSError(
                    f"{name} is missing here or has another size: all nodes must share the folder {self.folder}"
                )
        write_manifest(aside, files)
        sync(aside)
        self._confirm()
        if final.exists():  # damaged, or of an attempt that ended before it moved the pointer
            _discard(final)
        aside.rename(final)
        sync(self.folder)
        self._confirm()
        point(self.folder, final)

    def _on_main(self, action: Callable[[], None]) -> None:
        """Call `action` on the main rank; raise `TrainingError` on all ranks when it fails. Collective."""
        self._together(action if self.is_main else lambda: None)

    def _together(self, action: Callable[[], Any]) -> list[Any]:
        """Call `action` on every rank and return the results of all ranks, by rank. Collective.

        Raises the same `TrainingError` on every rank when it failed on any.
        """
        try:
            own: Any = (action(), "")
        except Exception as error:  # of any kind, because the other ranks wait for this rank's answer
            own = (None, str(error) or type(error).__name__)
        everywhere: list[Any] = [None] * self.group.size()
        dist.all_gather_object(everywhere, own, group=self.group)
        for rank, (_result, problem) in enumerate(everywhere):
            if problem:
                raise TrainingError(self._failed(f"rank {rank}: {problem}"))
        return [result for result, _problem in everywhere]

    def _failed(self, problem: str) -> str:
        try:
            good = pointed(self.folder)
        except DamagedError:
            good = None
        last = f"{good.name} is the last whole one" if good else "none was written before"
        return (
            f"{self.folder}: the checkpoint of step {self._step} could not be written ({problem}); {last}: "
            "free space or repair the disk, then run the same command again"
        )

    def prune(self, keep_last: int, keep_every: int | None) -> None:
        """Delete all but the newest `keep_last` checkpoints and those at multiples of `keep_every` steps.

        A checkpoint that cannot be deleted is logged and tried again the next time. Only the main rank acts; it is not
        collective.
        """
        if self.is_main:
            self._confirm()
            prune(self.folder, keep_last, keep_every)


def prune(folder: Path, keep_last: int, keep_every: int | None) -> None:
    """Delete old checkpoints in `folder`, as `Writer.prune` says."""
    for path in folder.glob(f".step-*{TRASH}*"):
        _delete(path)
    try:
        current = pointed(folder)
    except DamagedError as error:
        log.warning("nothing is deleted: %s", error)
        return
    found = steps_of(folder)
    # newer than the pointer: an earlier attempt wrote it and ended before it moved the pointer
    orphans = [path for path in found if current is None or step_of(path) > step_of(current)]
    kept = [path for path in found if path not in orphans]
    for path in orphans + kept[:-keep_last]:
        for_ever = keep_every is not None and step_of(path) % keep_every == 0
        if path in orphans or not for_ever:
            try:
                _discard(path)
            except OSError as error:
                log.warning("%s cannot be deleted (%s); it is tried again after the next checkpoint", path, error)


def _discard(path: Path) -> None:
    """Rename a checkpoint to a hidden name and then delete it, so that a partly deleted one never has a valid name."""
    number, trash = 0, path.with_name(f".{path.name}{TRASH}")
    while trash.exists():
        number += 1
        trash = path.with_name(f".{path.name}{TRASH}-{number}")
    path.rename(trash)
    _delete(trash)


def _delete(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        log.warning("%s cannot be deleted (%s); it is tried again after the next checkpoint", path, error)


def _cause(error: BaseException) -> str:
    """Return the first rank's error of a DCP error, in one line."""
    failures = getattr(error, "failures", None)
    if failures:
        rank, (cause, _stack) = min(failures.items())
        return f"rank {rank}: {cause}"
    return one_line(error)


def has_pointer(folder: Path) -> bool:
    """Return whether `folder` has a pointer, so that a checkpoint was once written."""
    return (folder / POINTER).exists()
