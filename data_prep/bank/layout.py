"""The files of a bank of memories, and their sizes (arXiv 2407.01178, sections on sparsity).

A bank is a folder of Arrow files with a row for each memory: `id`, `check` (xxh3 of the row's bytes) and `memory` (the
bytes); `index-*.arrow` with the place of each id; `manifest.json`. A memory is one reference's keys and values, an
array [L_mem, 2, H_kv, k, D] (memory layers; key, value; key/value heads; kept tokens; head width).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from data_prep.errors import DataError
from data_prep.shards.manifest import Count, FileName, Record, Sealed

# (smallest budget of a code, bytes of its coarse part, bits of each half of that)
_COARSE = ((13, 4, 14), (9, 3, 12), (4, 2, 8), (2, 1, 4))

MADE_BY = "launchers/write_bank.py"
DType = Literal["bfloat16", "float16", "float32"]
# numpy has no bfloat16, so its 16 bits are stored as uint16.
NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(np.uint16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}


@dataclass(frozen=True)
class MemoryShape:
    """The shape of a memory, [layers, 2, heads, tokens, width]."""

    layers: int
    heads: int
    tokens: int
    width: int

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> "MemoryShape":
        """Returns the shape of an array (L_mem, 2, H_kv, k, D). Raises DataError for any other shape."""
        if len(shape) != 5 or shape[1] != 2 or min(shape) < 1:
            raise DataError(f"bank: memories of shape {tuple(shape)}; a memory is [L_mem, 2, H_kv, k, D]")
        return cls(shape[0], *shape[2:])

    @property
    def array(self) -> tuple[int, int, int, int, int]:
        return self.layers, 2, self.heads, self.tokens, self.width

    @property
    def vectors(self) -> int:
        """Number of keys and values of a memory."""
        return 2 * self.layers * self.heads * self.tokens

    def bytes(self, dtype: DType = "bfloat16") -> int:
        return self.vectors * self.width * NUMPY_TYPES[dtype].itemsize

    def coded_bytes(self, code_bytes: int) -> int:
        """Returns the bytes of a memory with `code_bytes` for each key or value, instead of `width` numbers."""
        return self.vectors * code_bytes


class BankFile(Record):
    """A file of memories, in the order of writing."""

    file: FileName
    memories: Count
    bytes: Count


class QuantiserEntry(Record):
    """The trained codecs, one for keys and one for values."""

    factory: str
    keys: FileName
    values: FileName
    code_bytes: int = Field(gt=0)
    xxh3: str


class BankManifest(Sealed):
    """The manifest of a bank; index: the file with each id's place; deleted: ids that are not read any more."""

    version: Literal[1] = 1
    kind: Literal["bank"] = "bank"
    model_fingerprint: str
    store_fingerprint: str
    shape: tuple[int, int, int, int, int]
    dtype: DType
    quantiser: QuantiserEntry | None = None
    index: FileName
    index_bytes: Count
    memories: Count
    deleted: list[int] = Field(default=[])
    files: list[BankFile]


def to_float32(array: NDArray[Any], dtype: DType) -> NDArray[np.float32]:
    """Returns stored numbers, of any shape, as float32; bfloat16 is given as uint16."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def from_float32(array: NDArray[np.float32], dtype: DType) -> NDArray[Any]:
    """Returns finite float32 numbers in the stored type, rounded to nearest, ties to even."""
    if dtype != "bfloat16":
        return array.astype(NUMPY_TYPES[dtype])
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


@contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Holds the lock `name` of a folder, for which other processes wait; `.lock` is that of the manifest."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def bank_factory(width: int) -> str:
    """Returns a FAISS codec for head width D that needs at least 11 times fewer bytes than bfloat16.

    For D = 80 it is the published one, OPQ20x80-Residual2x14-PQ8x10, with 14 bytes instead of 160.
    Raises DataError for a width that is odd or below 12.
    """
    budget = 2 * width // 11
    if budget < 2 or width % 2:
        raise DataError(f"quantise: head width {width} must be even and at least 12; or give a FAISS factory")
    coarse, coarse_bits = next(known[1:] for known in _COARSE if budget >= known[0])
    left = 8 * (budget - coarse)
    parts = [m for m in (1, 2, 4, 8, 16, 32) if width % m == 0 and left // m >= 4]
    _, bits, part = max((m * min(left // m, 10), min(left // m, 10), m) for m in parts)
    rotation = max(m for m in (1, 2, 4, 5, 8, 10, 16, 20) if width % m == 0)
    return f"OPQ{rotation}_{width},Residual2x{coarse_bits},PQ{part}x{bits}"
