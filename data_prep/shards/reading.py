"""Read token shards, which are memory-mapped Arrow IPC files with a row for each document.

The columns are `tokens: large_list<uint16|uint32>`, `source: dictionary` and, when not every token is to be learned,
`loss_mask: large_list<uint8>`, as long as the tokens. A shard is one record batch, so that its tokens are contiguous in
the file.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.config import TokenType
from data_prep.errors import DataError
from data_prep.shards.columns import numpy_view
from data_prep.shards.manifest import ShardEntry, verify_shard

Tokens = NDArray[np.uint16] | NDArray[np.uint32]
Mask = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ShardViews:
    """Views of a memory-mapped file, which they keep mapped.

    tokens: uint16 or uint32 [n]. offsets: int64 [documents + 1], offsets[d] is the first token of document d.
    loss_mask: uint8 [n], 0 = the token is not to be learned; None: all are. raw: the bytes of `tokens`.
    """

    tokens: Tokens
    offsets: NDArray[np.int64]
    loss_mask: Mask | None
    raw: memoryview


class Shard:
    """A memory-mapped shard, which is verified and opened when it is first read.

    Reading raises DataError, naming the file, when the file does not match its entry.
    """

    def __init__(self, folder: Path, entry: ShardEntry, token_type: TokenType, checksum: bool = True) -> None:
        """checksum: False does not compare the checksum, for folders that were verified before."""
        self.path = folder / entry.file
        self.entry = entry
        self._token_type = token_type
        self._checksum = checksum
        self._views: ShardViews | None = None

    @property
    def tokens(self) -> Tokens:
        return self.open().tokens

    @property
    def offsets(self) -> NDArray[np.int64]:
        return self.open().offsets

    @property
    def loss_mask(self) -> Mask | None:
        return self.open().loss_mask

    def open(self) -> ShardViews:
        """Returns the shard's arrays; the first call reads the whole file once to compare its checksum."""
        if self._views is None:
            if self._checksum:
                verify_shard(self.path, self.entry)
            self._views = self._map()
        return self._views

    def close(self) -> None:
        """Closes the file; arrays that `open` has returned stay valid."""
        self._views = None

    def _map(self) -> ShardViews:
        try:
            # Closing releases the file descriptor; the arrays keep the mapping alive.
            with pa.memory_map(str(self.path)) as file:
                reader = pa.ipc.open_file(file)
                if reader.num_record_batches != 1:
                    raise self._foreign(f"it has {reader.num_record_batches} record batches, but must have one")
                batch = reader.get_batch(0)
        except (pa.ArrowException, OSError) as error:
            raise self._foreign(f"it is not an Arrow file ({error})") from error
        if "tokens" not in batch.schema.names:
            raise self._foreign("it has no column tokens")
        tokens, offsets = self._column(batch, "tokens", pa.from_numpy_dtype(self._token_type))
        if len(tokens) != self.entry.tokens or batch.num_rows != self.entry.documents:
            raise self._foreign(f"it has {batch.num_rows} documents and {len(tokens)} tokens, the manifest differs")
        mask = None
        if "loss_mask" in batch.schema.names:
            mask, mask_offsets = self._column(batch, "loss_mask", pa.uint8())
            if not np.array_equal(mask_offsets, offsets):
                raise self._foreign("its loss_mask and its tokens are of different lengths")
        return ShardViews(tokens, offsets, mask, tokens.view(np.uint8).data)

    def _column(self, batch: pa.RecordBatch, name: str, values: pa.DataType) -> tuple[NDArray, NDArray[np.int64]]:
        """Returns values and offsets of a list column. Raises DataError when the lists do not cover the values."""
        lists = batch.column(name)
        if not pa.types.is_large_list(lists.type) or lists.type.value_type != values:
            raise self._foreign(f"{name} are {lists.type}, the manifest says {pa.large_list(values)}")
        flat, offsets = numpy_view(lists.values), numpy_view(lists.offsets)
        if offsets[0] != 0 or offsets[-1] != len(flat):
            raise self._foreign(f"its documents cover {name} {offsets[0]} to {offsets[-1]} of {len(flat)}")
        return flat, offsets

    def _foreign(self, reason: str) -> DataError:
        return DataError(f"{self.path}: is not a shard of this folder: {reason}; prepare the folder again")
