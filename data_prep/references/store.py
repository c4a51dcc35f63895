"""References: short parts of documents, as tokens, from which a model writes explicit memories."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from pydantic import Field

from data_prep.config import TokenType
from data_prep.errors import DataError
from data_prep.files import file_checksum
from data_prep.shards.columns import arrow_array, map_batch, numpy_view, write_columns
from data_prep.shards.manifest import Count, FileName, Record, Sealed, TokenizerEntry
from data_prep.shards.reading import Tokens
from data_prep.tokenizers.tokenizer import Tokenizer, load_tokenizer

Ids = NDArray[np.int64]


class ReferenceFile(Record):
    """One file of references, in the order of their ids."""

    file: FileName
    references: Count
    tokens: Count
    bytes: Count
    xxh3: str


class StoreManifest(Sealed):
    """The manifest of a folder of references; ids number them through `files` in order."""

    version: Literal[1] = 1
    kind: Literal["references"] = "references"
    config_hash: str
    tokenizer: TokenizerEntry
    token_type: TokenType
    length: int = Field(gt=0)
    files: list[ReferenceFile]

    @property
    def fingerprint(self) -> str:
        """xxh3 (hex) of all that determines the references and their ids."""
        parts = self.model_dump_json(include={"version", "tokenizer", "token_type", "length", "files"})
        return xxhash.xxh3_64_hexdigest(parts.encode())


def write_references(path: Path, tokens: Tokens, offsets: Sequence[int], documents: Sequence[int]) -> ReferenceFile:
    """Writes one file atomically, and returns its entry.

    Args:
        tokens: uint16 or uint32 [n]; reference r is tokens[offsets[r]:offsets[r + 1]].
        documents: for each reference the number of its document (`cutting.document_number`).
    """
    ends = arrow_array(np.asarray(offsets, dtype=np.int64))
    lists = pa.LargeListArray.from_arrays(ends, arrow_array(tokens))
    write_columns(path, {"tokens": lists, "document": np.asarray(documents, dtype=np.uint64)})
    return ReferenceFile(
        file=path.name,
        references=len(documents),
        tokens=len(tokens),
        bytes=path.stat().st_size,
        xxh3=file_checksum(path),
    )


class _File:
    """Views of one file. Raises DataError when its checksum or its content is not that of its entry."""

    def __init__(self, path: Path, entry: ReferenceFile, token_type: TokenType, checksum: bool) -> None:
        if checksum and file_checksum(path) != entry.xxh3:
            raise DataError(f"{path}: is damaged: its checksum is not the manifest's; copy it again, or make it again")
        batch = map_batch(path)
        names = batch.schema.names
        if names != ["tokens", "document"] or batch.num_rows != entry.references:
            raise DataError(
                f"{path}: has columns {names} of {batch.num_rows} references, the manifest differs; copy it again, or "
                "prepare the references again"
            )
        lists = batch.column("tokens")
        self.tokens: Tokens = numpy_view(lists.values)
        self.offsets: Ids = numpy_view(lists.offsets)
        self.documents: NDArray[np.uint64] = numpy_view(batch.column("document"))
        if self.tokens.dtype != np.dtype(token_type) or len(self.tokens) != entry.tokens:
            raise DataError(
                f"{path}: has {len(self.tokens)} tokens of {self.tokens.dtype}, the manifest differs; copy it "
                "again, or prepare the references again"
            )


class ReferenceStore:
    """The references of a folder, memory-mapped; a file is opened when it is first read.

    Raises DataError, naming the file, when the folder is not what its manifest says.
    """

    def __init__(self, folder: Path | str, checksums: bool = True) -> None:
        """checksums: compare a file's checksum when it is first read."""
        self.folder = Path(folder).expanduser()
        self.manifest = StoreManifest.read(self.folder, "launchers/prepare_data.py (data.references)")
        for entry in self.manifest.files:
            path = self.folder / entry.file
            if not path.is_file():
                raise DataError(f"{path}: is missing; copy it back, or prepare the references again")
            if path.stat().st_size != entry.bytes:
                raise DataError(
                    f"{path}: has {path.stat().st_size} bytes, the manifest says {entry.bytes}: it was cut short or "
                    "replaced; copy it again, or prepare the references again"
                )
        self.length = self.manifest.length
        self.fingerprint = self.manifest.fingerprint
        self._firsts = np.cumsum([0, *(entry.references for entry in self.manifest.files)], dtype=np.int64)
        self._files: dict[int, _File] = {}
        self._checksums = checksums

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @property
    def tokens(self) -> int:
        """Number of tokens of all references."""
        return sum(entry.tokens for entry in self.manifest.files)

    def read(self, ids: Ids) -> tuple[Ids, Ids]:
        """Returns tokens int64 [n, length], zero after a reference's end, and lengths int64 [n] of ids int64 [n].

        Id -1 means no reference, of length 0. Raises DataError for an unknown id.
        """
        ids = np.asarray(ids, dtype=np.int64)
        tokens = np.zeros((len(ids), self.length), dtype=np.int64)
        lengths = np.zeros(len(ids), dtype=np.int64)
        columns = np.arange(self.length)
        for here, file, rows in self._located(ids):
            starts = file.offsets[rows]
            lengths[here] = file.offsets[rows + 1] - starts
            inside = columns < lengths[here, None]
            places = np.where(inside, starts[:, None] + columns, starts[:, None])
            tokens[here] = np.where(inside, file.tokens[places], 0)
        return tokens, lengths

    def documents(self, ids: Ids) -> NDArray[np.uint64]:
        """Returns the numbers of the references' documents, uint64 [n]; 0 for id -1."""
        ids = np.asarray(ids, dtype=np.int64)
        numbers = np.zeros(len(ids), dtype=np.uint64)
        for here, file, rows in self._located(ids):
            numbers[here] = file.documents[rows]
        return numbers

    def texts(self, ids: Ids, tokenizer: Tokenizer | None = None) -> list[str]:
        """Returns the references of ids int64 [n] as n texts; "" for id -1. Raises DataError for an unknown id."""
        tokenizer = tokenizer or self.tokenizer()
        tokens, lengths = self.read(ids)
        return [
            tokenizer.decode(row[:n]) if n else "" for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)
        ]

    def tokenizer(self) -> Tokenizer:
        """Returns the references' tokenizer. Raises DataError when the folder's file is another one."""
        entry = self.manifest.tokenizer
        tokenizer = load_tokenizer(self.folder / entry.file)
        if tokenizer.fingerprint != entry.fingerprint:
            raise DataError(
                f"{tokenizer.path}: tokenizer's fingerprint is {tokenizer.fingerprint}, the references were made with "
                f"{entry.fingerprint}; put that tokenizer back, or prepare the references again"
            )
        return tokenizer

    def check_tokenizer(self, fingerprint: str, other: Path | str) -> None:
        """Raises DataError unless `other` (a folder of token shards) was made with the same tokenizer."""
        if fingerprint != self.manifest.tokenizer.fingerprint:
            raise DataError(
                f"data.references: {self.folder} was made with tokenizer {self.manifest.tokenizer.fingerprint}, "
                f"{other} with {fingerprint}; prepare one of them again with the other's tokenizer"
            )

    def verify(self) -> None:
        """Reads every file and raises DataError at the first that is damaged."""
        for number, entry in enumerate(self.manifest.files):
            self._files[number] = _File(self.folder / entry.file, entry, self.manifest.token_type, True)

    def _located(self, ids: Ids) -> list[tuple[NDArray[np.intp], _File, Ids]]:
        """Returns (places in `ids`, file, rows in the file) for each file that has some of these ids."""
        if len(ids) and (ids.max() >= len(self) or ids.min() < -1):
            wrong = int(ids.max() if ids.max() >= len(self) else ids.min())
            raise DataError(f"{self.folder}: has references 0 to {len(self) - 1}, {wrong} was asked for")
        numbers = np.searchsorted(self._firsts, ids, side="right") - 1
        out = []
        for number in np.unique(numbers[ids >= 0]).tolist():
            here = np.flatnonzero(numbers == number)
            out.append((here, self._open(number), ids[here] - self._firsts[number]))
        return out

    def _open(self, number: int) -> _File:
        if number not in self._files:
            entry = self.manifest.files[number]
            path = self.folder / entry.file
            self._files[number] = _File(path, entry, self.manifest.token_type, self._checksums)
        return self._files[number]
