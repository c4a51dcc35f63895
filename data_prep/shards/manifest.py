"""manifest.json: the content of a prepared folder, and the checks of its files."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import xxhash
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from data_prep.config import TokenType
from data_prep.errors import DataError
from data_prep.files import file_checksum, write_text

MANIFEST_FILE = "manifest.json"
Split = Literal["train", "valid"]


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"is {name!r}; it must be a plain file name inside the folder")
    return name


FileName = Annotated[str, AfterValidator(_plain_name)]
Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """An entry of a manifest; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TokenizerEntry(Record):
    """The tokenizer's file and identity."""

    file: FileName
    kind: str
    fingerprint: str
    vocab_size: int = Field(gt=0)
    bos_id: Count
    eos_id: Count


class ShardEntry(Record):
    """One shard: documents of one source and one split."""

    file: FileName
    split: Split
    source: str
    documents: Count
    tokens: Count
    bytes: Count
    xxh3: str


class SkippedCounts(Record):
    """Numbers of one source's documents that are in no shard, by reason."""

    empty: Count = 0
    damaged: Count = 0
    duplicates: Count = 0
    not_sampled: Count = 0
    filtered: Count = 0
    near_duplicates: Count = 0

    def plus(self, other: "SkippedCounts") -> "SkippedCounts":
        theirs = other.model_dump()
        return SkippedCounts(**{name: count + theirs[name] for name, count in self.model_dump().items()})


class Sealed(Record):
    """A manifest file with a checksum of its own content."""

    checksum: str = Field(default="", description="xxh3 of the other fields; empty in folders of earlier versions")

    @classmethod
    def parse(cls, text: bytes, path: str) -> Self:
        """Returns the manifest in `text`, the bytes of the file `path`. Raises DataError when they are not one."""
        try:
            manifest = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "file"
            raise DataError(
                f"{path}: {place}: {first['msg']}; "
                "the file was edited or another program wrote it: prepare the folder again"
            ) from error
        if manifest.checksum not in ("", manifest._own_checksum):
            raise DataError(
                f"{path}: its checksum is {manifest._own_checksum}, it says {manifest.checksum}: the file was edited "
                "or damaged; copy it again, or prepare the folder again"
            )
        return manifest

    @classmethod
    def read(cls, folder: Path, made_by: str) -> Self:
        """Returns the manifest of `folder`; made_by: the command that makes such a folder. Raises DataError."""
        path = folder / MANIFEST_FILE
        try:
            text = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot read it ({error.strerror}); make the folder with {made_by}") from error
        return cls.parse(text, str(path))

    def save(self, folder: Path) -> None:
        """Writes manifest.json into `folder` atomically."""
        whole = self.model_copy(update={"checksum": self._own_checksum})
        write_text(folder / MANIFEST_FILE, whole.model_dump_json(indent=1) + "\n")

    @property
    def _own_checksum(self) -> str:
        return xxhash.xxh3_64_hexdigest(self.model_dump_json(exclude={"checksum"}).encode())


class Manifest(Sealed):
    """The manifest of a prepared folder; `shards` are in reading order."""

    version: Literal[1] = 1
    config_hash: str
    tokenizer: TokenizerEntry
    token_type: TokenType
    shards: list[ShardEntry]
    skipped: dict[str, SkippedCounts] = {}
    created_with: dict[str, str] = {}

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Returns the manifest of `folder`, and checks each shard's presence and size and the tokenizer's fingerprint.

        Raises:
            DataError: a file is missing, cut short, foreign or malformed; the message names it.
        """
        folder = Path(folder)
        manifest = cls.read(folder, "launchers/prepare_data.py")
        manifest.check_sizes({entry.name: entry.stat().st_size for entry in os.scandir(folder)}, str(folder))
        manifest.check_tokenizer(folder / manifest.tokenizer.file)
        return manifest

    def check_sizes(self, sizes: Mapping[str, int], folder: str) -> None:
        """Raises DataError at a shard that is missing or has another size; sizes: bytes of the folder's files."""
        for shard in self.shards:
            path = f"{folder.rstrip('/')}/{shard.file}"
            if shard.file not in sizes:
                raise DataError(f"{path}: shard is missing; copy it back, or delete the folder and prepare it again")
            if sizes[shard.file] != shard.bytes:
                raise DataError(
                    f"{path}: shard has {sizes[shard.file]} bytes, the manifest says {shard.bytes}: it was "
                    "cut short or replaced; copy it again, or delete the folder and prepare it again"
                )

    @classmethod
    def parse(cls, text: bytes, path: str) -> Self:
        """See `Sealed.parse`. Raises DataError also when a shard is listed twice."""
        manifest = super().parse(text, path)
        names = [shard.file for shard in manifest.shards]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{path}: shards: {twice} is listed twice; prepare the folder again")
        return manifest

    def check_tokenizer(self, path: Path) -> None:
        """Raises DataError when the file `path` is not the tokenizer that the shards were made with."""
        if not path.is_file():
            raise DataError(f"{path}: tokenizer is missing; copy it back, or prepare the folder again")
        found = file_checksum(path)
        if found != self.tokenizer.fingerprint:
            raise DataError(
                f"{path}: tokenizer's fingerprint is {found}, the shards were made with "
                f"{self.tokenizer.fingerprint}; put that tokenizer back, or prepare the folder again"
            )

    @property
    def fingerprint(self) -> str:
        """xxh3 (hex) of the fields that determine the tokens and their order."""
        parts = self.model_dump_json(include={"version", "tokenizer", "token_type", "shards"})
        return xxhash.xxh3_64_hexdigest(parts.encode())


def verify_shard(path: Path, entry: ShardEntry) -> None:
    """Raises DataError when the file's checksum is not the entry's."""
    try:
        found = file_checksum(path)
    except OSError as error:
        raise DataError(f"{path}: cannot read the shard ({error.strerror}); copy it back") from error
    if found != entry.xxh3:
        raise DataError(
            f"{path}: shard is damaged: its checksum is {found}, the manifest says {entry.xxh3}; "
            "copy it again, or delete the folder and prepare it again"
        )
