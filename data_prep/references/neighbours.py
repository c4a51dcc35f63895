"""The table of the reference that each chunk of the training data retrieved, computed before training."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import Field

from data_prep.config import CHUNK
from data_prep.errors import DataError
from data_prep.files import file_checksum
from data_prep.references.store import ReferenceStore
from data_prep.shards.columns import map_columns, write_columns
from data_prep.shards.manifest import Count, FileName, Manifest, Record, Sealed, ShardEntry

NO_REFERENCE = -1


class TableFile(Record):
    """The neighbours of one shard's chunks."""

    shard: FileName
    file: FileName
    chunks: Count
    xxh3: str


class TableManifest(Sealed):
    """The manifest of a table: of which data, references and settings it was made."""

    version: Literal[1] = 1
    kind: Literal["neighbours"] = "neighbours"
    data_fingerprint: str
    store_fingerprint: str
    settings_hash: str
    sequence_length: int = Field(gt=0)
    files: list[TableFile]


def chunks_in(entry: ShardEntry) -> int:
    """Returns the whole chunks of a shard; chunk c is its tokens [64 c, 64 c + 64)."""
    return entry.tokens // CHUNK


def table_folder(references: Path, data_fingerprint: str, sequence_length: int) -> Path:
    """Returns the folder, inside that of the references, of the table of one data folder and sample length."""
    return references / f"neighbours-{data_fingerprint}-{sequence_length}"


def write_table_file(folder: Path, shard: str, neighbours: NDArray[np.int32]) -> TableFile:
    """Writes the neighbours int32 [chunks] of one shard atomically."""
    path = folder / f"neighbours-{Path(shard).stem}.arrow"
    write_columns(path, {"reference": np.asarray(neighbours, dtype=np.int32)})
    return TableFile(shard=shard, file=path.name, chunks=len(neighbours), xxh3=file_checksum(path))


def write_table(
    store: ReferenceStore,
    data: Manifest,
    sequence_length: int,
    neighbours: Mapping[str, NDArray[np.int32]] | Iterable[tuple[str, NDArray[np.int32]]],
    settings_hash: str = "",
) -> Path:
    """Writes a whole table, and returns its folder; neighbours: a shard's file name and int32 [chunks] of it."""
    folder = table_folder(store.folder, data.fingerprint, sequence_length)
    folder.mkdir(parents=True, exist_ok=True)
    pairs = neighbours.items() if isinstance(neighbours, Mapping) else neighbours
    files = [write_table_file(folder, shard, column) for shard, column in pairs]
    TableManifest(
        data_fingerprint=data.fingerprint,
        store_fingerprint=store.fingerprint,
        settings_hash=settings_hash,
        sequence_length=sequence_length,
        files=files,
    ).save(folder)
    return folder


class NeighbourTable:
    """The neighbours of a data folder's chunks. A shard's column is memory-mapped when it is first read.

    Raises DataError when the table is missing, damaged, or was made for other data, references or samples.
    """

    def __init__(
        self, references: Path | str, data: Manifest, shards: Sequence[ShardEntry], sequence_length: int
    ) -> None:
        """shards: in the order of the numbers that `look_up` takes. sequence_length: tokens of a sample."""
        if sequence_length % CHUNK:
            raise DataError(
                f"data.sequence_length is {sequence_length}; with data.references it must be a multiple of {CHUNK}, "
                "so that a sample is whole chunks"
            )
        self.store = ReferenceStore(references)
        self.store.check_tokenizer(data.tokenizer.fingerprint, "data.path")
        self.folder = table_folder(self.store.folder, data.fingerprint, sequence_length)
        self.manifest = TableManifest.read(self.folder, "launchers/prepare_data.py --config F")
        if self.manifest.store_fingerprint != self.store.fingerprint:
            raise DataError(
                f"{self.folder}: was made with references {self.manifest.store_fingerprint}, these are "
                f"{self.store.fingerprint}; delete it and run launchers/prepare_data.py again"
            )
        by_shard = {file.shard: file for file in self.manifest.files}
        for entry in shards:
            if entry.file not in by_shard or by_shard[entry.file].chunks != chunks_in(entry):
                raise DataError(f"{self.folder}: lacks chunks of {entry.file}; delete it and prepare it again")
        self._files = [by_shard[entry.file] for entry in shards]
        self._columns: dict[int, NDArray[np.int32]] = {}

    @property
    def fingerprint(self) -> str:
        """xxh3 (hex) of the table's content."""
        parts = [file.xxh3 for file in self.manifest.files]
        return xxhash.xxh3_64_hexdigest(repr((self.store.fingerprint, parts)).encode())

    def look_up(self, shard: int, first_token: int, chunks: int) -> NDArray[np.int64]:
        """Returns the references int64 [chunks] of chunks from `first_token`, a multiple of 64, on; -1: none.

        Raises DataError when no chunk begins at `first_token`, or the table of the shard is damaged.
        """
        column = self._columns.get(shard)
        if column is None:
            column = self._columns[shard] = self._open(shard)
        if first_token < 0 or first_token % CHUNK:
            raise DataError(f"neighbours: first token {first_token} begins no chunk; it must be a multiple of {CHUNK}")
        first = first_token // CHUNK
        return column[first : first + chunks].astype(np.int64)

    def _open(self, shard: int) -> NDArray[np.int32]:
        entry = self._files[shard]
        path = self.folder / entry.file
        (column,) = map_columns(path, ["reference"])
        if file_checksum(path) != entry.xxh3 or len(column) != entry.chunks or column.dtype != np.int32:
            raise DataError(
                f"{path}: is damaged: its checksum is not the manifest's; delete {self.folder} and run "
                "launchers/prepare_data.py again"
            )
        return column
