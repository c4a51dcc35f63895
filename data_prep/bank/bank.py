"""Read memories of a bank by id, with a bounded cache and a thread that reads ahead."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_prep.bank.layout import MADE_BY, NUMPY_TYPES, BankManifest, MemoryShape
from data_prep.bank.quantise import Quantiser
from data_prep.bank.writer import NOWHERE, BankWriter, memory_rows, merge_bank
from data_prep.errors import DataError
from data_prep.shards.columns import map_columns

Ids = NDArray[np.int64]
WriteMissing = Callable[[Ids], NDArray[Any]]  # ids int64 [n] -> memories [n, L_mem, 2, H_kv, k, D]


class Bank:
    """A bank of one model's memories. Opening it reads the manifest; a file is mapped when it is first read.

    Of a warm bank all memories were written before. A cold bank has `write_missing`, with which it encodes a missing
    memory when it is first read, and stores it. The checksum of every row is compared when it is read.
    """

    def __init__(
        self,
        folder: Path | str,
        model_fingerprint: str,
        *,
        store_fingerprint: str | None = None,
        cache_bytes: int = 1 << 30,
        write_missing: WriteMissing | None = None,
        shard_bytes: int = 1 << 28,
    ) -> None:
        """Open the bank in a folder.

        Args:
            model_fingerprint: of the weights that read; a bank that other weights wrote is refused.
            store_fingerprint: of the references that the ids number; None: it is not compared.
            cache_bytes: bytes of decoded memories kept in RAM; the least recently used one leaves first.
            write_missing: makes memories that are not in the bank; None: reading them raises.
            shard_bytes: bytes of such memories that are kept in RAM before they are stored.

        Raises:
            DataError: there is no bank, a file is missing or cut short, or the bank is of another model or references.
        """
        self.folder = Path(folder).expanduser()
        self._write_missing, self._shard_bytes = write_missing, shard_bytes
        self._lock = threading.RLock()
        self._cache: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._cache_bytes, self._cached = cache_bytes, 0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bank")
        self.hits, self.misses = 0, 0
        self._new: dict[int, NDArray[Any]] = {}  # encoded, not yet stored
        self._load()
        self._check_whose(model_fingerprint, store_fingerprint)

    def _load(self) -> None:
        self.manifest = BankManifest.read(self.folder, MADE_BY)
        self.shape = MemoryShape.of(self.manifest.shape)
        self.dtype = self.manifest.dtype
        expected = {file.file: file.bytes for file in self.manifest.files}
        expected[self.manifest.index] = self.manifest.index_bytes
        for name, size in expected.items():
            path = self.folder / name
            actual = path.stat().st_size if path.is_file() else None
            if actual != size:
                what = "is missing" if actual is None else f"has {actual} bytes, the manifest says {size}"
                raise DataError(f"{path}: {what}; copy it again, or write the bank again with {MADE_BY}")
        (self._places,) = map_columns(self.folder / self.manifest.index, ["place"])
        self._deleted = frozenset(self.manifest.deleted)
        self._files: dict[int, tuple[NDArray[np.uint64], NDArray[np.uint8]]] = {}
        entry = self.manifest.quantiser
        self._quantiser = Quantiser.load(self.folder, entry) if entry else None

    def _check_whose(self, model_fingerprint: str, store_fingerprint: str | None) -> None:
        manifest = self.manifest
        if manifest.model_fingerprint != model_fingerprint:
            raise DataError(
                f"{self.folder}: was written by model {manifest.model_fingerprint}, this one is {model_fingerprint}, "
                f"whose weights cannot read its keys and values; write the bank again with {MADE_BY}"
            )
        if store_fingerprint not in (None, manifest.store_fingerprint):
            raise DataError(
                f"{self.folder}: was written from references {manifest.store_fingerprint}, these are "
                f"{store_fingerprint}; give the folder it was written from, or write the bank again with {MADE_BY}"
            )

    def __len__(self) -> int:
        """Number of memories that can be read from disk."""
        gone = sum(self._place(id) != NOWHERE for id in self._deleted)
        return self.manifest.memories - gone

    def __contains__(self, id: int) -> bool:
        return id not in self._deleted and self._place(id) != NOWHERE

    def read(self, ids: Ids) -> NDArray[Any]:
        """Returns the memories [n, L_mem, 2, H_kv, k, D] of ids int64 [n]; bfloat16 as uint16; zeros for id -1.

        Raises DataError for a missing id (without `write_missing`) and for a damaged row.
        """
        out = np.empty((len(ids), *self.shape.array), dtype=NUMPY_TYPES[self.dtype])
        memories = self._get([id for id in dict.fromkeys(np.asarray(ids).tolist()) if id >= 0])
        for row, id in enumerate(np.asarray(ids).tolist()):
            out[row] = memories[id] if id >= 0 else 0
        return out

    def prefetch(self, ids: Ids) -> Future[None]:
        """Starts to read memories into the cache in another thread, and returns at once."""

        def fetch() -> None:
            # Only stored ones: the model encodes missing ones in the thread that uses it.
            self._get([id for id in dict.fromkeys(np.asarray(ids).tolist()) if id in self])

        return self._pool.submit(fetch)

    def verify(self) -> None:
        """Reads every row and raises DataError at the first that is damaged."""
        for number, file in enumerate(self.manifest.files):
            for row in range(file.memories):
                self._row(number, row)

    def close(self) -> None:
        """Stores memories that were encoded since, and ends the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._store_new()

    def __enter__(self) -> "Bank":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, ids: list[int]) -> dict[int, NDArray[Any]]:
        """Returns id -> memory, from the cache, the disk or the model."""
        found: dict[int, NDArray[Any]] = {}
        with self._lock:
            for id in ids:
                if (memory := self._cache.get(id)) is not None:
                    self._cache.move_to_end(id)
                    found[id] = memory
            self.hits += len(found)
            missing = [id for id in ids if id not in found]
            self.misses += len(missing)
            found |= {id: self._new[id] for id in missing if id in self._new}
            stored = [id for id in missing if id not in found and id in self]
            found |= self._read_stored(stored)
            unknown = [id for id in missing if id not in found]
            if unknown:
                found |= self._encode(unknown)
            for id in missing:
                self._keep(id, found[id])
        return found

    def _read_stored(self, ids: list[int]) -> dict[int, NDArray[Any]]:
        if not ids:
            return {}
        places = [self._place(id) for id in ids]
        rows = [self._row(place >> 32, place & 0xFFFFFFFF) for place in places]
        if self._quantiser is not None:
            return dict(zip(ids, self._quantiser.decode(np.stack(rows), self.shape, self.dtype), strict=True))
        # Views of the file, which are copied once, into the result.
        kind, shape = NUMPY_TYPES[self.dtype], self.shape.array
        return {id: row.view(kind).reshape(shape) for id, row in zip(ids, rows, strict=True)}

    def _encode(self, ids: list[int]) -> dict[int, NDArray[Any]]:
        if self._write_missing is None:
            raise DataError(
                f"{self.folder}: has no memory of reference {ids[0]}; write it with {MADE_BY}, or open the bank with "
                "write_missing, so that missing memories are written when they are read"
            )
        memories = self._write_missing(np.array(ids, dtype=np.int64))
        made = dict(zip(ids, memories, strict=True))
        self._new |= made
        if len(self._new) * self.shape.bytes(self.dtype) >= self._shard_bytes:
            self._store_new()
        return made

    def _store_new(self) -> None:
        if not self._new:
            return
        manifest = self.manifest
        ids = np.array(list(self._new), dtype=np.int64)
        # The name depends on the content, so that processes that read at the same time use different names.
        part = f"cold.{xxhash.xxh3_64_hexdigest(ids.tobytes() + str(id(self)).encode())}"
        writer = BankWriter(
            self.folder,
            manifest.shape,
            manifest.dtype,
            manifest.model_fingerprint,
            manifest.store_fingerprint,
            part=part,
            quantiser=self._quantiser,
        )
        with writer:
            writer.write(ids, np.stack(list(self._new.values())))
        merge_bank(self.folder)
        self._new.clear()
        self._load()

    def _keep(self, id: int, memory: NDArray[Any]) -> None:
        """Puts a memory into the cache; the least recently used ones leave."""
        if id in self._cache or memory.nbytes > self._cache_bytes:
            return
        memory = np.array(memory)  # a copy, because a view would keep its whole file in RAM
        self._cache[id] = memory
        self._cached += memory.nbytes
        while self._cached > self._cache_bytes:
            self._cached -= self._cache.popitem(last=False)[1].nbytes

    def _place(self, id: int) -> int:
        return int(self._places[id]) if 0 <= id < len(self._places) else NOWHERE

    def _row(self, number: int, row: int) -> NDArray[np.uint8]:
        if number not in self._files:
            checks, rows, _ = memory_rows(self.folder / self.manifest.files[number].file)
            self._files[number] = checks, rows
        checks, rows = self._files[number]
        if xxhash.xxh3_64_intdigest(rows[row].data) != int(checks[row]):
            path = self.folder / self.manifest.files[number].file
            raise DataError(f"{path}: memory {row} is damaged; copy the file again, or write the bank again")
        return rows[row]
