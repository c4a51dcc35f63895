"""Write token shards: files of about equal size with the documents of one source and one split."""

from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.config import TokenType
from data_prep.files import file_checksum, replacing
from data_prep.shards.columns import arrow_array
from data_prep.shards.manifest import ShardEntry, Split
from data_prep.shards.reading import Mask, Tokens


class ShardWriter:
    """Writes one source's documents of one split into shards of about `shard_bytes` token bytes.

    A document is never cut; one larger than a shard gets a shard of its own. It is a context manager, after which
    `entries` lists the shards. Without documents nothing is written.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        source: str,
        token_type: TokenType,
        shard_bytes: int,
        *,
        masked: bool = False,
        prefix: str = "",
        tail: int | None = None,
    ) -> None:
        """Begin without a shard.

        masked: shards get a loss_mask column. prefix: comes before the number in the shards' names. tail: a token
        that ends each shard and is not learned, so that the last window of packed rows is whole.
        """
        self.entries: list[ShardEntry] = []
        self.identities: list[NDArray[np.uint64]] = []
        self._folder, self._split, self._source, self._prefix = folder, split, source, prefix
        # The operating system allocates memory only for the part that is written.
        self._buffer = np.empty(shard_bytes // np.dtype(token_type).itemsize, dtype=token_type)
        self._mask = np.empty(len(self._buffer), dtype=np.uint8) if masked else None
        self._limit = len(self._buffer)
        self._offsets, self._identities, self._tail = [0], array("Q"), tail

    def add(
        self,
        tokens: Tokens,
        loss_mask: Mask | None = None,
        ends: Sequence[int] | None = None,
        identities: Sequence[int] = (0,),
    ) -> None:
        """Appends one document: tokens [n] of the shard's token type, with bos and eos.

        Args:
            loss_mask: uint8 [n], 0 = the token is not to be learned; None: all are. Only for a `masked` writer.
            ends: the ends of several documents in `tokens`, which stay in one shard; None: it is one document.
            identities: a number for each document, which `self.identities` lists by shard.
        """
        assert loss_mask is None or self._mask is not None
        ends = [len(tokens)] if ends is None else ends
        if self._offsets[-1] + len(tokens) + (self._tail is not None) > self._limit:
            self._flush()
        used = self._offsets[-1]
        if len(tokens) >= len(self._buffer):  # it is larger than a shard and gets its own
            self._buffer = np.resize(self._buffer, len(tokens) + 1)
            if self._mask is not None:
                self._mask = np.resize(self._mask, len(tokens) + 1)
        self._buffer[used : used + len(tokens)] = tokens
        if self._mask is not None:
            self._mask[used : used + len(tokens)] = 1 if loss_mask is None else loss_mask
        self._offsets += [used + end for end in ends]
        self._identities.extend(identities)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()

    def _flush(self) -> None:
        if len(self._offsets) == 1:
            return
        if self._tail is not None:
            used = self._offsets[-1]
            self._buffer[used] = self._tail
            if self._mask is not None:
                self._mask[used] = 0
            self._offsets.append(used + 1)
            self._identities.append(0)
        used = self._offsets[-1]
        path = self._folder / f"{self._split}-{self._source}-{self._prefix}{len(self.entries):05d}.arrow"
        mask = None if self._mask is None else self._mask[:used]
        self.entries.append(write_shard(path, self._split, self._source, self._buffer[:used], mask, self._offsets))
        self.identities.append(np.array(self._identities, dtype=np.uint64))
        self._offsets, self._identities = [0], array("Q")


def write_shard(
    path: Path, split: Split, source: str, tokens: Tokens, loss_mask: Mask | None, offsets: Sequence[int]
) -> ShardEntry:
    """Writes one shard atomically and returns its entry; document d is tokens[offsets[d]:offsets[d + 1]]."""
    documents, ends = len(offsets) - 1, arrow_array(np.array(offsets, dtype=np.int64))
    columns: dict[str, pa.Array] = {
        "tokens": pa.LargeListArray.from_arrays(ends, arrow_array(tokens)),
        "source": pa.DictionaryArray.from_arrays(arrow_array(np.zeros(documents, np.int32)), _names([source])),
    }
    if loss_mask is not None:
        columns["loss_mask"] = pa.LargeListArray.from_arrays(ends, arrow_array(loss_mask))
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    with replacing(path) as temporary, pa.ipc.new_file(temporary, batch.schema) as writer:
        writer.write_batch(batch)
    return ShardEntry(
        file=path.name,
        split=split,
        source=source,
        documents=documents,
        tokens=len(tokens),
        bytes=path.stat().st_size,
        xxh3=file_checksum(path),
    )


def _names(names: Sequence[str]) -> pa.Array:
    encoded = [name.encode() for name in names]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(names), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))])
