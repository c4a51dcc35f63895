"""Files of a checkpoint: hashed while they are written, on disk when they are closed."""

import errno
import io
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import filesystem

from training.checkpoint import folder as checkpoint_folder
from training.checkpoint import storage as checkpoint_storage
from training.checkpoint import writer as checkpoint_writer
from training.checkpoint.manifest import FileEntry
from training.checkpoint.safe_reader import SafeReader
from training.checkpoint.shards import SharePlanner, TensorShard
from training.checkpoint.storage import HashedFile, Storage
from training.errors import TrainingError


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5000), max_size=12), chunk=st.integers(1, 4000), buffer=st.sampled_from([1, 64, 4096])
)
def test_the_entry_is_what_the_file_holds(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], chunk: int, buffer: int
) -> None:
    path = tmp_path_factory.mktemp("hashed") / "file"
    content = b"".join(bytes([n % 251]) * size for n, size in enumerate(sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_storage, "_CHUNK", chunk)
        patch.setattr(checkpoint_storage, "_LAG", 2)
        raw = HashedFile(path)
        with io.BufferedWriter(raw, buffer) as stream:
            done = 0
            for size in sizes:
                stream.write(content[done : done + size])
                done += size
    assert path.read_bytes() == content
    assert raw.entry == FileEntry.of(path)


def test_every_byte_is_there_before_the_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sync a file, of the whole file."""
    synced: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    storage = Storage(tmp_path / "made")
    share = [TensorShard("weight", torch.Size([3, 4]), torch.Size([0, 0]), torch.ones(3, 4))]
    dcp.save({}, storage_writer=storage, planner=SharePlanner(share), no_dist=True)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "made").iterdir()}
    assert sorted(synced) == sorted(sizes.values())
    assert storage.entries == {name: FileEntry.of(tmp_path / "made" / name) for name in sizes}


def test_a_disk_that_is_full_at_the_last_byte_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    storage = Storage(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    share = [TensorShard("weight", torch.Size([3]), torch.Size([0]), torch.ones(3))]
    with pytest.raises(dcp.CheckpointException, match="No space left"):
        dcp.save({}, storage_writer=storage, planner=SharePlanner(share), no_dist=True)
    assert not storage.entries


def test_a_disk_that_is_full_for_the_manifest_gets_its_room_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_writer, "write_manifest", full)
    share = [TensorShard("weight", torch.Size([3]), torch.Size([0]), torch.ones(3))]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        group = dist.group.WORLD
        assert group is not None
        with pytest.raises(TrainingError, match=r"step 7 could not be written .*No space left"):
            checkpoint_writer.Writer(tmp_path, group).write(lambda: share, 7, {})
    finally:
        dist.destroy_process_group()
    assert not list(tmp_path.iterdir())


def test_the_disk_is_told_to_begin_and_later_to_forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []

    def advise(_descriptor: int, begin: int, length: int, _advice: Any) -> None:
        told.append((begin, length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(checkpoint_storage, "_CHUNK", 10)
    monkeypatch.setattr(checkpoint_storage, "_LAG", 2)
    with io.BufferedWriter(HashedFile(tmp_path / "file"), 4) as stream:
        stream.write(b"x" * 45)
    assert told == [(0, 10), (10, 10), (20, 10), (0, 10), (30, 10), (10, 10)]


def test_where_there_is_a_gpu_nothing_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The share is in CPU memory; DCP's loader for GPUs would wait for all of training's work, tensor by tensor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(filesystem, "_OverlappingCpuLoader", None)
    share = [TensorShard("weight", torch.Size([3, 4]), torch.Size([0, 0]), torch.arange(12.0).view(3, 4))]
    dcp.save({}, storage_writer=Storage(tmp_path / "made"), planner=SharePlanner(share), no_dist=True)
    found = {"weight": torch.zeros(3, 4)}
    dcp.load(found, storage_reader=SafeReader(tmp_path / "made"), no_dist=True)
    assert torch.equal(found["weight"], share[0].values)


def test_the_thread_is_on_the_gpu_of_its_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread begins on the first GPU, and to leave the stream of another one makes a context there."""
    used: list[tuple[torch.device, str]] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: used.append((device, threading.current_thread().name)))
    monkeypatch.setattr(checkpoint_folder, "Staging", lambda device: None)
    topology: Any = SimpleNamespace(device=torch.device("cuda", 3))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        folder = checkpoint_folder.CheckpointFolder(tmp_path, topology)
        folder._pool.submit(int).result()
        folder.close()
    finally:
        dist.destroy_process_group()
    assert used == [(topology.device, "checkpoint_0")]
