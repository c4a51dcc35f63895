"""A bounded local cache of remote files, which fetches files ahead."""

import errno
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import xxhash

from data_prep.config import CacheConfig
from data_prep.errors import DataError
from data_prep.files import replacing
from data_prep.sources.places import file_system


class RemoteCache:
    """Copies of remote files in a local folder of at most `max_bytes`; the least recently used is removed first.

    Several processes may share the folder: a copy appears whole, and a process that has it open can read it after
    another one has removed it. A single file larger than the bound is kept while it is the only one.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._folder = config.folder.expanduser()
        self._max_bytes = config.max_bytes
        self._lock = threading.Lock()
        self._used: OrderedDict[Path, int] = OrderedDict()  # copies and their bytes, the least recently used first
        self._coming: dict[tuple[str, str], Future[Path]] = {}  # by URL and version
        self._pool = ThreadPoolExecutor(max(1, config.read_ahead), thread_name_prefix="fetch")
        self._read_ahead = config.read_ahead
        self._removed: list[Callable[[Path], None]] = []
        self._folder.mkdir(parents=True, exist_ok=True)
        left = [path for path in self._folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        for path in sorted(left, key=lambda path: path.stat().st_mtime):
            self._used[path] = path.stat().st_size

    def fetch(self, url: str, size: int | None = None, version: str = "") -> Path:
        """Returns the local copy of `url`, which is made when it is missing.

        size: bytes of the file; a copy of another size is made again. version: the storage's version of the file; each
        version has a copy of its own.

        Raises:
            DataError: the file cannot be fetched, or not as a whole.
        """
        with self._lock:
            coming = self._coming.pop((url, version), None)
        return coming.result() if coming is not None else self._fetch(url, size, version)

    def prefetch(self, files: Iterable[tuple[str, int, str]]) -> None:
        """Starts to fetch (url, bytes, version), as many as `read_ahead` allows, and returns at once."""
        for url, size, version in list(files)[: self._read_ahead]:
            with self._lock:
                if (url, version) not in self._coming:
                    self._coming[url, version] = self._pool.submit(self._fetch, url, size, version)

    def on_removal(self, call: Callable[[Path], None]) -> None:
        """Registers a function that is called with each copy removed to make room, in the thread that removes it."""
        self._removed.append(call)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def forget(self, url: str) -> None:
        """Removes the copy of `url`, when it is damaged."""
        path = self._path(url)
        with self._lock:
            self._used.pop(path, None)
        path.unlink(missing_ok=True)

    def _path(self, url: str, version: str = "") -> Path:
        name = url.rsplit("/", 1)[-1]
        return self._folder / f"{xxhash.xxh3_64_hexdigest((url + version).encode())}-{name}"

    def _fetch(self, url: str, size: int | None, version: str) -> Path:
        path = self._path(url, version)
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            found = -1
        if found < 0 or (size is not None and found != size):
            found = self._download(url, path, size)
        with self._lock:
            self._used[path] = found
            self._used.move_to_end(path)
        self._make_room(keep=path)
        return path

    def _download(self, url: str, path: Path, size: int | None) -> int:
        system, remote = file_system(url)
        # Two threads or processes may fetch one file: each writes its own temporary copy.
        own = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        try:
            with replacing(own) as temporary:
                system.get_file(remote, str(temporary))
        except Exception as error:  # each storage raises its own errors
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise  # an error of this disk, not of the storage
            raise DataError(f"{url}: cannot be fetched ({error!r}); check the URL and your credentials") from error
        found = own.stat().st_size
        if size is not None and found != size:
            own.unlink()
            raise DataError(f"{url}: has {found} bytes, it should have {size}: it was replaced or cut short; run again")
        own.replace(path)
        return found

    def _make_room(self, keep: Path) -> None:
        with self._lock:
            total = sum(self._used.values())
            gone = []
            for path, size in self._used.items():
                if total <= self._max_bytes:
                    break
                if path != keep:
                    gone.append(path)
                    total -= size
            for path in gone:
                del self._used[path]
        for path in gone:
            path.unlink(missing_ok=True)
            for call in self._removed:
                call(path)
