"""Files of torch.distributed.checkpoint: hashed while they are written, and synced to disk before they are closed."""

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

_CHUNK = 8 << 20  # bytes after which the disk is told to begin
_LAG = 8  # chunks that the disk may be behind before their memory is given back
_BUFFER = 1 << 20  # bytes: a record's small parts are written together


class HashedFile(io.FileIO):
    """A new file that is on disk when `close` returns; `entry` is then what it must be.

    The disk works beside the writer: a thread tells Linux of each chunk that it is not needed any more.  Told once,
    Linux begins to write it out; told again, it gives back its memory, so a checkpoint takes a few chunks of the page
    cache and leaves the rest to the tokens that training reads.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "wb")
        self._digest, self._written, self._chunks = xxhash.xxh3_64(), 0, 0
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="write-out")

    def write(self, data: Any) -> int:
        """Write up to `_CHUNK` bytes of `data`, as a raw file may; the number of bytes written."""
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
        """Advice: nothing is lost where it cannot be given."""
        if chunk >= 0 and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fileno(), chunk * _CHUNK, _CHUNK, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        if self.closed:
            return
        self._disk.shutdown()
        try:
            os.fsync(self.fileno())
        finally:
            super().close()

    @property
    def entry(self) -> FileEntry:
        return FileEntry(self._written, self._digest.hexdigest())


class _Files(FileSystem):
    """The file operations that DCP writes with."""

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
    """One file a rank, and on the main rank the list of tensors; the folder's path does not get into the checkpoint.

    `entries`: by name, what each file is that this rank has written.
    """

    def __init__(self, folder: Path) -> None:
        # sync_files: DCP's own sync comes before its last bytes, `HashedFile` syncs.  per_thread_copy_ahead: what is
        # written is in CPU memory; copying ahead, DCP would wait for what training has begun on the GPU, box by box
        super().__init__(folder, sync_files=False, per_thread_copy_ahead=0)
        self.entries: dict[str, FileEntry] = {}
        self.fs = _Files(self.entries)

    def storage_meta(self) -> None:
        return None


@contextmanager
def without_crc32() -> Iterator[None]:
    """torch's own checksums cost a fifth of the time, and nothing reads them: the manifest has xxh3 of every byte."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)
