"""Token shards: Arrow IPC files, a row a document, `tokens: large_list<uint16|uint32>`, `source: dictionary`.

A shard is one record batch, so that all its tokens lie in the file one after another and are read in place.
"""

from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .config import TokenType
from .errors import DataError
from .files import file_checksum, replacing
from .manifest import ShardEntry, Split, verify_shard

Tokens = NDArray[np.uint16] | NDArray[np.uint32]


class ShardWriter:
    """Writes one source's documents of one split into shards of about `shard_bytes` token bytes.

    A document is never cut: one larger than a shard gets a shard to itself. Used as a context manager;
    `entries` lists the finished shards afterwards. Nothing is written when there is no document.
    """

    def __init__(self, folder: Path, split: Split, source: str, token_type: TokenType, shard_bytes: int) -> None:
        self.entries: list[ShardEntry] = []
        self._folder, self._split, self._source = folder, split, source
        # The operating system gives memory to the part that is written, not to all of it.
        self._buffer = np.empty(shard_bytes // np.dtype(token_type).itemsize, dtype=token_type)
        self._offsets = [0]

    def add(self, tokens: Tokens) -> None:
        """Appends one document: uint [n] of the shard's token type, bos and eos included."""
        used = self._offsets[-1]
        if used + len(tokens) > len(self._buffer):
            self._flush()
            used = 0
            if len(tokens) > len(self._buffer):
                self._write(tokens, [0, len(tokens)])
                return
        self._buffer[used : used + len(tokens)] = tokens
        self._offsets.append(used + len(tokens))

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()

    def _flush(self) -> None:
        if len(self._offsets) > 1:
            self._write(self._buffer[: self._offsets[-1]], self._offsets)
            self._offsets = [0]

    def _write(self, tokens: Tokens, offsets: list[int]) -> None:
        documents = len(offsets) - 1
        path = self._folder / f"{self._split}-{self._source}-{len(self.entries):05d}.arrow"
        lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(tokens))
        source = pa.DictionaryArray.from_arrays(np.zeros(documents, np.int32), pa.array([self._source]))
        batch = pa.record_batch([lists, source], names=["tokens", "source"])
        with replacing(path) as temporary, pa.ipc.new_file(temporary, batch.schema) as writer:
            writer.write_batch(batch)
        self.entries.append(
            ShardEntry(
                file=path.name,
                split=self._split,
                source=self._source,
                documents=documents,
                tokens=len(tokens),
                bytes=path.stat().st_size,
                xxh3=file_checksum(path),
            )
        )


class Shard:
    """A shard in place, memory-mapped: verified and opened when it is first asked for.

    `tokens` is uint16 or uint32 [n]; `offsets` is int64 [documents + 1], offsets[d] the first token of
    document d; both are views of the file. Raises DataError, naming the file, when it is not what its entry
    says.
    """

    def __init__(self, folder: Path, entry: ShardEntry, token_type: TokenType) -> None:
        self.path = folder / entry.file
        self.entry = entry
        self._token_type = token_type
        self._views: tuple[Tokens, NDArray[np.int64]] | None = None

    @property
    def tokens(self) -> Tokens:
        return self.open()[0]

    @property
    def offsets(self) -> NDArray[np.int64]:
        return self.open()[1]

    def open(self) -> tuple[Tokens, NDArray[np.int64]]:
        """(tokens, offsets); the first call reads the whole file once to compare its checksum."""
        if self._views is None:
            verify_shard(self.path, self.entry)
            self._views = self._map()
        return self._views

    def _map(self) -> tuple[Tokens, NDArray[np.int64]]:
        try:
            # Closing gives the file descriptor back; the arrays keep the mapping alive.
            with pa.memory_map(str(self.path)) as file:
                reader = pa.ipc.open_file(file)
                if reader.num_record_batches != 1:
                    raise self._foreign(f"it has {reader.num_record_batches} record batches, not one")
                batch = reader.get_batch(0)
        except (pa.ArrowException, OSError) as error:
            raise self._foreign(f"it is no Arrow file ({error})") from error
        if "tokens" not in batch.schema.names:
            raise self._foreign("it has no column tokens")
        lists = batch.column("tokens")
        expected = pa.large_list(pa.from_numpy_dtype(self._token_type))
        if not pa.types.is_large_list(lists.type) or lists.type.value_type != expected.value_type:
            raise self._foreign(f"tokens are {lists.type}, the manifest says {expected}")
        tokens = lists.values.to_numpy(zero_copy_only=True)
        offsets = lists.offsets.to_numpy(zero_copy_only=True)
        if offsets[0] != 0 or offsets[-1] != len(tokens):
            raise self._foreign(f"its documents cover tokens {offsets[0]} to {offsets[-1]} of {len(tokens)}")
        if len(tokens) != self.entry.tokens or batch.num_rows != self.entry.documents:
            raise self._foreign(f"it holds {batch.num_rows} documents and {len(tokens)} tokens, the manifest differs")
        return tokens, offsets

    def _foreign(self, found: str) -> DataError:
        return DataError(f"{self.path}: is no shard of this folder: {found}; prepare the folder again")
