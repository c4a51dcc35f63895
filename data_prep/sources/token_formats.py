"""Readers of tokenized data: `.bin` of llm.c and of LM2's repository, `.bin` with `.idx` of Megatron."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.sources.formats import Opened, Records
from data_prep.sources.problems import Problems

_HEADER_INTS = 256
# magic -> (version, type of a token): llm.c's FineWeb shards, and those of LM2's repository.
_BIN_KINDS = {20240520: (1, np.uint16), 20240801: (7, np.uint32)}
_MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_MEGATRON_TYPES: dict[int, type[Any]] = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}


def read_bin(file: Opened, problems: Problems, bos_id: int, eos_id: int) -> Records:
    """Yields the documents of a .bin: a header of 256 int32 (magic, version, tokens), then tokens; bos begins each."""
    size = file.path.stat().st_size
    header = np.fromfile(file.path, dtype="<i4", count=_HEADER_INTS)
    magic = int(header[0]) if len(header) else 0
    if len(header) < _HEADER_INTS or magic not in _BIN_KINDS:
        known = " or ".join(map(str, _BIN_KINDS))
        problems.bad(f"{file.name}: begins with {magic}, not with {known}: it is not a .bin of llm.c or of LM2")
        return
    version, kind = _BIN_KINDS[magic]
    count, width = int(header[2]), np.dtype(kind).itemsize
    expected = 4 * _HEADER_INTS + count * width
    if int(header[1]) != version or size != expected:
        problems.bad(
            f"{file.name}: version {header[1]}, {count} tokens and {size} bytes; version {version} of this kind "
            f"has {expected} bytes: it was cut short or another program wrote it"
        )
        return
    tokens: NDArray[Any] | list[int] = []
    if count:
        tokens = np.memmap(file.path, dtype=kind, mode="r", offset=4 * _HEADER_INTS, shape=(count,))
    begins = np.flatnonzero(np.asarray(tokens) == bos_id)
    _warn_of_other_delimiters(file.name, np.asarray(tokens), len(begins), bos_id, eos_id, problems)
    if count and (not len(begins) or begins[0] != 0):
        begins = np.concatenate([[0], begins])  # tokens before the first bos end the last shard's document
    for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), count], strict=True):
        yield np.array(tokens[begin:end]), f"{file.name}:{begin}", 4 * _HEADER_INTS + end * width


def _warn_of_other_delimiters(
    name: str, tokens: NDArray[Any], begins: int, bos_id: int, eos_id: int, problems: Problems
) -> None:
    """Warns when eos, not bos, seems to delimit the documents, which are then read as one."""
    ends = int(np.count_nonzero(tokens[:-1] == eos_id)) if eos_id != bos_id else 0
    if ends > begins + 1 or (ends and not begins):
        problems.warn(
            f"{name}: eos ({eos_id}) is {ends:,} times inside its {len(tokens):,} tokens, but only bos ({bos_id}) "
            f"begins a document, {begins:,} times, so it is read as {max(begins, 1):,} documents. If eos delimits its "
            "documents, name a tokenizer whose bos and eos are one token, such as <|endoftext|>"
        )


def read_megatron(file: Opened, problems: Problems) -> Records:
    """Yields the documents of an indexed data set; `file` is its .bin, and its .idx is beside it."""
    index = index_of(file.path)
    try:
        kind, ends, starts = _read_index(index)
    except (OSError, ValueError, struct.error) as error:
        problems.bad(f"{index}: is missing, damaged or not an index of Megatron's ({error})")
        return
    size, width = file.path.stat().st_size, np.dtype(kind).itemsize
    if len(ends) and int(ends.max()) > size:
        problems.bad(f"{file.name}: has {size} bytes, but its index points to {int(ends.max())}: it was cut short")
        return
    content = np.memmap(file.path, dtype=np.uint8, mode="r") if size else np.empty(0, np.uint8)
    for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if (end - start) % width:
            problems.bad(f"{file.name}: document {number} has {end - start} bytes, no multiple of {width}")
        else:
            yield np.array(content[start:end].view(kind)), f"{file.name}:{number}", end


def index_of(path: Path) -> Path:
    """Returns the path of the index beside a .bin, in upper or lower case as that."""
    return path.with_suffix(".IDX" if path.suffix.isupper() else ".idx")


def _read_index(path: Path) -> tuple[type[Any], NDArray[np.int64], NDArray[np.int64]]:
    """Returns the type of a token, and for each document where its bytes end and start, int64 [documents] each."""
    raw = path.read_bytes()
    if raw[:9] != _MEGATRON_MAGIC:
        raise ValueError(f"begins with {raw[:9]!r}")
    version, code, sequences, documents = struct.unpack_from("<QBQQ", raw, 9)
    if version != 1 or code not in _MEGATRON_TYPES:
        raise ValueError(f"version {version}, type {code}")
    kind = _MEGATRON_TYPES[code]
    at = 9 + struct.calcsize("<QBQQ")
    lengths = np.frombuffer(raw, "<i4", sequences, at).astype(np.int64)
    pointers = np.frombuffer(raw, "<i8", sequences, at + 4 * sequences)
    bounds = np.frombuffer(raw, "<i8", documents, at + 12 * sequences)
    if len(bounds) == 0 or bounds[0] != 0 or bounds[-1] != sequences or np.any(np.diff(bounds) < 0):
        raise ValueError("its documents do not cover its sequences")
    # A document is several consecutive sequences.
    bounds = bounds[np.concatenate([[True], np.diff(bounds) > 0])]
    starts = pointers[bounds[:-1]]
    ends = pointers[bounds[1:] - 1] + lengths[bounds[1:] - 1] * np.dtype(kind).itemsize
    return kind, ends, starts
