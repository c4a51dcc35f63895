"""Read the documents of a source of any kind, always in the same order."""

import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.config import SourceConfig
from data_prep.files import encodes
from data_prep.sources.formats import (
    Content,
    Exercise,
    Opened,
    Records,
    read_arrow,
    read_jsonl,
    read_parquet,
    read_text,
)
from data_prep.sources.hub import hub_parts, read_hub
from data_prep.sources.places import InputFile, Listing, is_remote, list_files
from data_prep.sources.problems import Lenient, Problems
from data_prep.sources.remote import RemoteCache
from data_prep.sources.token_formats import read_bin, read_megatron

_PATTERNS = {
    "text": (".txt", ".md"),
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "task": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
    "bin": (".bin",),
    "megatron": (".bin",),
}
_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True, slots=True)
class Document:
    """A document, the name of its source, and its origin: a file, or file:line (or row).

    text is empty when `content` is tokens; for an exercise it is all prompts and answers.
    """

    text: str
    source: str
    origin: str
    content: Exercise | NDArray[Any] | None = None

    @property
    def is_empty(self) -> bool:
        if isinstance(self.content, np.ndarray):
            return not len(self.content)
        return not self.text or self.text.isspace()

    @property
    def bytes(self) -> bytes:
        """The bytes that identify the document: UTF-8 of its text, or its tokens as little-endian int64."""
        if isinstance(self.content, np.ndarray):
            return self.content.astype("<i8").tobytes()
        return self.text.encode()


def _ignore(count: int) -> None:
    pass


class DocumentReader:
    """Reads a source's documents, in the order of their sorted paths.

    `listing` and `files` raise DataError when the path does not exist or has no file of the source's kind.
    """

    def __init__(
        self, source: SourceConfig, cache: RemoteCache | None = None, delimiters: tuple[int, int] = (-1, -1)
    ) -> None:
        """Read nothing yet.

        cache: copies of remote files, required for a URL. delimiters: the ids of bos, which begins a document of a
        .bin, and of eos.
        """
        self.source, self.name = source, source.label
        self._cache, self._delimiters = cache, delimiters

    @cached_property
    def listing(self) -> Listing:
        """The source's files, sorted, and what else its folders have."""
        if self.source.kind == "python-stdlib":
            return Listing(_stdlib_files())
        assert self.source.path is not None
        if self.source.kind == "hf":
            return Listing(hub_parts(self.source))
        return list_files(self.source.path, _PATTERNS[self.source.kind])

    @property
    def files(self) -> list[InputFile]:
        """The source's files, sorted."""
        return self.listing.files

    def check_listing(self, problems: Problems) -> None:
        """Reports links and folders that cannot be read to `problems`."""
        for message in self.listing.broken:
            problems.bad(message, "repair or remove it, or set on_error: skip")

    @property
    def file_bytes(self) -> int:
        """Bytes of all files, which are the sum of what `read` passes to `advance`."""
        return sum(file.bytes for file in self.files)

    def read(
        self,
        problems: Problems,
        advance: Callable[[int], None] = _ignore,
        files: Sequence[InputFile] | None = None,
    ) -> Iterator[Document]:
        """Yields every document that is neither empty nor damaged, and counts the others in `problems`.

        Args:
            problems: raises DataError at the first damaged document, or counts it.
            advance: called with the number of file bytes read since the last call.
            files: some of the source's files; None: all.
        """
        if files is None:
            self.check_listing(problems)
        files = self.files if files is None else list(files)
        for number, file in enumerate(files):
            seen = 0
            # Some test files of the standard library are empty, or in other encodings, on purpose.
            damage = Lenient(problems) if self.source.kind == "python-stdlib" else problems
            if file.bytes == 0 and self.source.kind in ("jsonl", "task"):
                problems.is_empty(file.name)
            for content, origin, position in self._records(file, files[number + 1 :], damage):
                advance(position - seen)
                seen = position
                document = self._document(content, origin)
                if document.is_empty:
                    damage.is_empty(origin)
                elif not encodes(document.text):
                    problems.bad(f"{origin}: text has a lone surrogate, which UTF-8 cannot represent")
                else:
                    yield document
            advance(file.bytes - seen)

    def _document(self, content: Content, origin: str) -> Document:
        if isinstance(content, str):
            return Document(content, self.name, origin)
        if isinstance(content, Exercise):
            return Document(content.text, self.name, origin, content)
        return Document("", self.name, origin, content)

    def _records(self, file: InputFile, later: Sequence[InputFile], problems: Problems) -> Records:
        kind = self.source.kind
        if kind == "hf":
            return read_hub(self.source, file, problems)
        opened = Opened(self._local(file, later), file.name, self.source)
        if kind == "bin":
            return _readable(read_bin(opened, problems, *self._delimiters), file, problems)
        readers = {
            "jsonl": read_jsonl,
            "task": read_jsonl,
            "parquet": read_parquet,
            "arrow": read_arrow,
            "megatron": read_megatron,
        }
        return _readable(readers.get(kind, read_text)(opened, problems), file, problems)

    def _local(self, file: InputFile, later: Sequence[InputFile]) -> Path:
        if not is_remote(file.name):
            return Path(file.name)
        assert self._cache is not None
        path = self._cache.fetch(file.name, file.bytes, file.version)
        if self.source.kind == "megatron":
            # Megatron's index must be beside the file and have the same name.
            index = self._cache.fetch(file.name.removesuffix(".bin") + ".idx")
            beside = path.with_suffix(".idx")
            beside.unlink(missing_ok=True)
            beside.hardlink_to(index)
        self._cache.prefetch((other.name, other.bytes, other.version) for other in later)
        return path


def _readable(records: Records, file: InputFile, problems: Problems) -> Records:
    """Yields the records; an error of the operating system is reported as a problem of the file."""
    try:
        yield from records
    except OSError as error:
        reason = error.strerror or str(error)
        problems.bad(f"{file.name}: cannot be read ({reason})", "make it readable, or set on_error: skip")


def _stdlib_files() -> list[InputFile]:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [path for path in root.rglob("*.py") if not _NOT_STDLIB & set(path.relative_to(root).parts)]
    return sorted(
        (InputFile(path.as_posix(), path.stat().st_size) for path in paths if path.is_file()),
        key=lambda file: file.name,
    )
