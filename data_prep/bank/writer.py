"""Write a bank: any number of processes write shards, then one of them writes index and manifest."""

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from data_prep.bank.layout import (
    MADE_BY,
    NUMPY_TYPES,
    BankFile,
    BankManifest,
    DType,
    MemoryShape,
    locked,
)
from data_prep.bank.quantise import Quantiser
from data_prep.errors import DataError
from data_prep.shards.columns import map_batch, map_columns, numpy_view, write_columns
from data_prep.shards.manifest import MANIFEST_FILE

_SHARD_BYTES = 268_435_456
NOWHERE = -1


class BankWriter:
    """Writes memories into shards of about `shard_bytes`, each atomically.

    It is a context manager; without one, call `flush` at the end. The bank has the memories after `merge_bank`.
    Raises DataError when memories are not of the bank's shape and type.
    """

    def __init__(
        self,
        folder: Path | str,
        shape: tuple[int, ...],
        dtype: DType,
        model_fingerprint: str,
        store_fingerprint: str,
        *,
        part: str = "0",
        quantiser: Quantiser | None = None,
        shard_bytes: int = _SHARD_BYTES,
    ) -> None:
        """shape: (L_mem, 2, H_kv, k, D). part: a name that no other process that writes at the same time has."""
        self.folder, self.shape, self.dtype = Path(folder), MemoryShape.of(shape), dtype
        self._quantiser, self._part = quantiser, part
        self._notes = {
            "model": model_fingerprint,
            "references": store_fingerprint,
            "shape": "x".join(map(str, shape)),
            "dtype": dtype,
            "codec": quantiser.fingerprint if quantiser else "",
        }
        code = quantiser.code_bytes if quantiser else None
        self._row_bytes = self.shape.coded_bytes(code) if code else self.shape.bytes(dtype)
        self._rows_a_shard = max(1, shard_bytes // self._row_bytes)
        self._ids: list[NDArray[np.int64]] = []
        self._rows: list[NDArray[np.uint8]] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be made ({error.strerror}); give the bank another folder") from None

    def write(self, ids: NDArray[np.int64], memories: NDArray[Any]) -> None:
        """Writes memories [n, L_mem, 2, H_kv, k, D] of the references `ids`, int64 [n]; bfloat16 as uint16."""
        if memories.shape != (len(ids), *self.shape.array) or memories.dtype != NUMPY_TYPES[self.dtype]:
            raise DataError(
                f"{self.folder}: memories are {memories.dtype} {memories.shape}; this bank takes "
                f"{NUMPY_TYPES[self.dtype]} {(len(ids), *self.shape.array)}"
            )
        if self._quantiser is not None:
            rows = self._quantiser.encode(memories, self.dtype)
        else:
            rows = np.ascontiguousarray(memories).reshape(len(ids), -1).view(np.uint8)
        self._ids.append(np.array(ids, dtype=np.int64))
        self._rows.append(np.array(rows))
        while sum(map(len, self._ids)) >= self._rows_a_shard:
            self._write_shard(self._rows_a_shard)

    def flush(self) -> None:
        """Writes the remaining memories as a smaller shard."""
        if self._ids:
            self._write_shard(self._rows_a_shard)

    def written(self) -> NDArray[np.int64]:
        """Returns the ids, int64 [n], sorted, in the folder's shards of all processes, to skip them after a kill."""
        ids = [np.empty(0, dtype=np.int64)]
        for path in shard_paths(self.folder):
            check_notes(path, self._notes)
            ids += map_columns(path, ["id"])
        return np.unique(np.concatenate(ids))

    def __enter__(self) -> "BankWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()

    def _write_shard(self, count: int) -> None:
        ids, rows = np.concatenate(self._ids), np.concatenate(self._rows)
        self._ids, self._rows = ([ids[count:]], [rows[count:]]) if len(ids) > count else ([], [])
        checks = np.array([xxhash.xxh3_64_intdigest(row.data) for row in rows[:count]], dtype=np.uint64)
        number = 1 + max((_number(p) for p in shard_paths(self.folder) if _part(p) == self._part), default=-1)
        path = self.folder / f"bank-{self._part}-{number:05d}.arrow"
        write_columns(path, {"id": ids[:count], "check": checks, "memory": rows[:count]}, self._notes)


def shard_paths(folder: Path) -> list[Path]:
    """Returns the shards in a bank's folder, whether its manifest lists them or not."""
    return sorted(folder.glob("bank-*.arrow"))


def _part(path: Path) -> str:
    return path.stem.split("-", 1)[1].rsplit("-", 1)[0]


def _number(path: Path) -> int:
    return int(path.stem.rsplit("-", 1)[1])


def notes_of(path: Path) -> dict[str, str]:
    """Returns the notes that the shard's writer stored in its schema."""
    metadata = map_batch(path).schema.metadata or {}
    return {name.decode(): value.decode() for name, value in metadata.items()}


def check_notes(path: Path, notes: dict[str, str]) -> None:
    """Raises DataError when a shard was written by another model, from other references, or in another form."""
    own = notes_of(path)
    for name, value in notes.items():
        if own.get(name) != value:
            raise DataError(
                f"{path}: was written with {name} {own.get(name)!r}, this bank has {value!r}; write into another "
                "folder, or delete this one"
            )


def merge_bank(folder: Path | str) -> BankManifest:
    """Writes index and manifest over all shards of the folder, and returns the manifest.

    When two files have an id, the later one is used. A deleted id that was written again is no longer deleted. The
    function can be called again, also while the bank is read.
    Raises DataError when there is no shard, or shards differ in model, references or form.
    """
    folder = Path(folder)
    with locked(folder):
        paths = shard_paths(folder)
        if not paths:
            raise DataError(f"{folder}: has no shard of a bank; write one with {MADE_BY}")
        notes = notes_of(paths[0])
        old = BankManifest.read(folder, MADE_BY) if (folder / MANIFEST_FILE).is_file() else None
        known = {file.file for file in old.files} if old else set()
        paths.sort(key=lambda path: path.name not in known)  # new files last
        if old is not None:
            order = {file.file: n for n, file in enumerate(old.files)}
            paths.sort(key=lambda path: order.get(path.name, len(order)))
        for path in paths:
            check_notes(path, notes)
        codec = Quantiser.load(folder).entry if notes["codec"] else None
        if codec is not None and codec.xxh3 != notes["codec"]:
            raise DataError(f"{folder}: its shards were written with another codec than its own; write the bank again")
        columns = [map_columns(path, ["id"])[0] for path in paths]
        manifest = BankManifest(
            model_fingerprint=notes["model"],
            store_fingerprint=notes["references"],
            shape=MemoryShape.of(tuple(map(int, notes["shape"].split("x")))).array,
            dtype=_dtype(notes["dtype"]),
            quantiser=codec,
            files=[
                BankFile(file=p.name, memories=len(ids), bytes=p.stat().st_size)
                for p, ids in zip(paths, columns, strict=True)
            ],
            deleted=_still_deleted(old, paths, columns, known),
            **_write_index(folder, columns),
        )
        manifest.save(folder)
        _remove_old_indexes(folder, manifest.index)
        return manifest


def delete_memories(folder: Path | str, ids: NDArray[np.int64]) -> BankManifest:
    """Deletes memories and returns the manifest. Their bytes stay until the bank is written again."""
    folder = Path(folder)
    with locked(folder):
        old = BankManifest.read(folder, MADE_BY)
        deleted = sorted({*old.deleted, *np.asarray(ids).tolist()})
        manifest = old.model_copy(update={"deleted": deleted})
        manifest.save(folder)
        return manifest


def _write_index(folder: Path, columns: list[NDArray[np.int64]]) -> dict[str, Any]:
    """Writes the place of each id, file number << 32 | row or NOWHERE, to a new file, and returns its facts.

    Readers keep the old file open.
    """
    size = 1 + max((int(ids.max()) for ids in columns if len(ids)), default=-1)
    places = np.full(size, NOWHERE, dtype=np.int64)
    for number, ids in enumerate(columns):
        places[ids] = (number << 32) | np.arange(len(ids), dtype=np.int64)
    mark = xxhash.xxh3_64_hexdigest(places.tobytes())
    path = folder / f"index-{mark}.arrow"
    write_columns(path, {"place": places})
    return {"index": path.name, "index_bytes": path.stat().st_size, "memories": int((places != NOWHERE).sum())}


def _remove_old_indexes(folder: Path, current: str) -> None:
    for path in folder.glob("index-*.arrow"):
        if path.name != current:
            path.unlink()  # a process that has mapped it can still read it


def _still_deleted(
    old: BankManifest | None, paths: list[Path], columns: list[NDArray[np.int64]], known: set[str]
) -> list[int]:
    if old is None or not old.deleted:
        return []
    new = [ids for path, ids in zip(paths, columns, strict=True) if path.name not in known]
    back = np.concatenate([np.empty(0, np.int64), *new])
    return sorted(set(old.deleted) - set(back.tolist()))


def _dtype(name: str) -> DType:
    for known in ("bfloat16", "float16", "float32"):
        if name == known:
            return known  # type: ignore[return-value]
    raise DataError(
        f"bank: numbers of type {name!r}, but only bfloat16, float16 and float32 are known; write the bank again"
    )


def memory_rows(path: Path) -> tuple[NDArray[np.uint64], NDArray[np.uint8], pa.Schema]:
    """Returns checks uint64 [n], rows uint8 [n, bytes] and the schema of a shard, memory-mapped."""
    batch = map_batch(path)
    if batch.schema.names != ["id", "check", "memory"]:
        raise DataError(
            f"{path}: has columns {batch.schema.names}; it is not a shard of a bank: remove it from the folder"
        )
    return numpy_view(batch.column("check")), numpy_view(batch.column("memory")), batch.schema
