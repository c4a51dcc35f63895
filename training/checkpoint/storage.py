"""Files that torch.distributed.checkpoint (DCP) writes: checksums are computed while writing, and `close` syncs."""

import io
import os
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
import xxhash
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.serialization import get_crc32_options, set_crc32_options

from training.checkpoint.manifest import FileEntry

_CHUNK = 8 << 20  # bytes after which writing to disk is started
_LAG = 8  # chunks that stay in the page cache before their memory is freed
_BUFFER = 1 << 20  # bytes; small parts of a record are collected and written together


class HashedFile(io.FileIO):
    """A new file that is on disk when `close` returns; `entry` then has its size and checksum.

    A thread advises Linux twice that a chunk is not needed any more (POSIX_FADV_DONTNEED). At the first time Linux
    starts to write the chunk to disk, at the second it frees the chunk's page cache. So a checkpoint takes only a few
    chunks of the page cache, and the rest stays available for the tokens that training reads.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "wb")
        self._digest, self._written, self._chunks = xxhash.xxh3_64(), 0, 0
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="write-out")

    def write(self, data: Any) -> int:
        """Write up to `_CHUNK` bytes of `data`; return the number of bytes written."""
        view = memoryview(data).cast("B")[:_CHUNK]
        written = super().write(view)
        self._digest.update(view[:written])
        self._written += written
        while self._written >= (self._chunks + 1) * _CHUNK:
            self._disk.submit(self._not_needed, self._chunks)
            self._disk.submit(self._not_needed, self._chunks - _LAG)
            self._chunks += 1
        return written

    def _not_needed(self, chunk: int) -> None:
        """Advise Linux that the chunk is not needed; do nothing on systems without this call."""
        if chunk >= 0 and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fileno(), chunk * _CHUNK, _CHUNK, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Sync the file to disk and close it."""
        if self.closed:
            return
        self._disk.shutdown()
        try:
            os.fsync(self.fileno())
        finally:
            super().close()

    @property
    def entry(self) -> FileEntry:
        """Size and checksum of what was written."""
        return FileEntry(self._written, self._digest.hexdigest())


class _Files(FileSystem):
    """The file operations that DCP uses to write."""

    def __init__(self, entries: dict[str, FileEntry]) -> None:
        self._entries = entries

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        assert mode == "wb"
        raw = HashedFile(path)
        with io.BufferedWriter(raw, _BUFFER) as stream:
            yield stream
        self._entries[Path(path).name] = raw.entry

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self._entries[Path(new_path).name] = self._entries.pop(Path(path).name)


class Storage(dcp.FileSystemWriter):
    """DCP's storage writer: one file for each rank, and the list of tensors on the main rank.

    The folder's path is not stored in the checkpoint. `entries` has size and checksum of the files this rank wrote.
    """

    def __init__(self, folder: Path) -> None:
        # sync_files=False: DCP would sync before its last bytes are written; `HashedFile` syncs at the end.
        # per_thread_copy_ahead=0: the values are in CPU memory already; with copying DCP would wait, for every box, for
        # the kernels that training has started on the GPU.
        super().__init__(folder, sync_files=False, per_thread_copy_ahead=0)
        self.entries: dict[str, FileEntry] = {}
        self.fs = _Files(self.entries)

    def storage_meta(self) -> None:
        """Store no metadata, because DCP's would contain the folder's path."""
        return


@contextmanager
def without_crc32() -> Iterator[None]:
    """Switch off torch's checksums inside the context.

    They take a fifth of the time and are not read: the manifest has an xxh3 checksum of every file.
    """
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)
