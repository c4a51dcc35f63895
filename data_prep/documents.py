"""Documents out of text files, JSONL, Parquet and the standard library, always in the same order."""

import glob
import gzip
import json
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from .config import SourceConfig
from .errors import DataError
from .suggest import did_you_mean

_PATTERNS = {
    "text": (".txt", ".md"),
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "parquet": (".parquet",),
    "python-stdlib": (".py",),
}
_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}
_CHUNK = 1024 * 1024
_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Document:
    """One text, the name of its source, and where it was read: a file, or file:line (row for Parquet)."""

    text: str
    source: str
    origin: str


@dataclass
class Problems:
    """What to do about damaged documents, and how many there were. `fail` raises DataError at the first."""

    on_error: Literal["fail", "skip"] = "fail"
    empty: int = 0
    damaged: int = 0
    messages: list[str] = field(default_factory=list)

    def bad(self, message: str, way_out: str = "repair it, or set on_error: skip") -> None:
        if self.on_error == "fail":
            raise DataError(f"{message}; {way_out}")
        self.damaged += 1
        if len(self.messages) < 10:
            self.messages.append(message)


def _ignore(count: int) -> None:
    pass


class DocumentReader:
    """A source's documents, in the order of their sorted paths.

    Raises:
        DataError: the path does not exist or holds no file of the source's kind.
    """

    def __init__(self, source: SourceConfig) -> None:
        self.source = source
        self.name = source.label
        self.files = _find_files(source)

    @property
    def file_bytes(self) -> int:
        """Size of all files on disk: what `advance` of `read` adds up to."""
        return sum(path.stat().st_size for path in self.files)

    def read(self, problems: Problems, advance: Callable[[int], None] = _ignore) -> Iterator[Document]:
        """Yields every document that is neither empty nor damaged; counts those in `problems`.

        Args:
            problems: raises DataError at the first damaged document, or counts it.
            advance: called with the number of file bytes read since the last call.
        """
        readers = {"jsonl": _read_jsonl, "parquet": _read_parquet}
        reader = readers.get(self.source.kind, _read_text)
        # A few of the standard library's test files are in other encodings on purpose.
        damage = _Lenient(problems) if self.source.kind == "python-stdlib" else problems
        for path in self.files:
            size, seen = path.stat().st_size, 0
            for text, origin, position in reader(path, self.source.text_field, damage):
                advance(position - seen)
                seen = position
                if not text or text.isspace():
                    problems.empty += 1
                elif not _encodes(text):
                    problems.bad(f"{origin}: text has a lone surrogate, which no UTF-8 file can hold")
                else:
                    yield Document(text, self.name, origin)
            advance(size - seen)


class _Lenient(Problems):
    """Counts what is damaged into another `Problems` without ever raising."""

    def __init__(self, target: Problems) -> None:
        super().__init__("skip")
        self._target = target

    def bad(self, message: str, way_out: str = "") -> None:
        self._target.damaged += 1


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _find_files(source: SourceConfig) -> list[Path]:
    if source.path is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = [path for path in root.rglob("*.py") if not _NOT_STDLIB & set(path.relative_to(root).parts)]
    else:
        root = source.path.expanduser()
        endings = _PATTERNS[source.kind]
        if root.is_file():
            paths = [root]
        elif root.is_dir():
            paths = [path for path in root.rglob("*") if path.name.endswith(endings)]
        elif glob.has_magic(str(root)):
            paths = [Path(path) for path in glob.glob(str(root), recursive=True)]
        else:
            raise DataError(f"sources.path: {root} does not exist; give a file, a folder or a glob")
    files = sorted((path for path in paths if path.is_file()), key=lambda path: path.as_posix())
    if not files:
        kinds = ", ".join("*" + ending for ending in _PATTERNS[source.kind])
        raise DataError(f"sources.path: {root} holds no {kinds} file; check path and kind ({source.kind})")
    return files


# Each reader yields (text or None, origin, file bytes read so far).
_Texts = Iterator[tuple[str | None, str, int]]


def _read_text(path: Path, text_field: str, problems: Problems) -> _Texts:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.bad(f"{path}: byte {error.start} is {content[error.start]:#04x}, which is not UTF-8")
    else:
        yield text, str(path), len(content)


def _read_jsonl(path: Path, text_field: str, problems: Problems) -> _Texts:
    with path.open("rb") as file:
        number = 0
        try:
            for number, line in enumerate(_lines(path, file), start=1):
                if line.strip():
                    origin = f"{path}:{number}"
                    text = _text_of_line(line, origin, text_field, problems)
                    if text is not None:
                        yield text, origin, file.tell()
        except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
            problems.bad(f"{path}:{number + 1}: compressed data is damaged or cut short ({error})")


def _text_of_line(line: bytes, origin: str, text_field: str, problems: Problems) -> str | None:
    """The text of one JSONL line; None when the line is damaged."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        problems.bad(
            f"{origin}: byte {error.start} of the line is {line[error.start]:#04x}, which is not UTF-8"
        )
    except (json.JSONDecodeError, RecursionError) as error:
        problems.bad(f"{origin}: line is no JSON ({error})")
    else:
        if not isinstance(record, dict):
            problems.bad(f"{origin}: line is a JSON {type(record).__name__}; it must be an object")
        elif text_field not in record:
            hint = did_you_mean(text_field, record)
            problems.bad(
                f"{origin}: object has no key {text_field!r}{hint}", "set text_field, or on_error: skip"
            )
        elif record[text_field] is None:
            return ""
        elif not isinstance(record[text_field], str):
            found = type(record[text_field]).__name__
            problems.bad(f"{origin}: {text_field!r} is a {found}; it must be a string")
        else:
            return str(record[text_field])
    return None


def _lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    if path.suffix == ".gz":
        with gzip.open(file) as unpacked:
            yield from unpacked
    elif path.suffix == ".zst":
        rest = b""
        for chunk in _unpack_zstd(file):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
        yield rest
    else:
        yield from file


def _unpack_zstd(file: BinaryIO) -> Iterator[bytes]:
    # Not stream_reader: it takes a file that was cut short for one that ends there.
    frame = None
    while chunk := file.read(_CHUNK):
        while chunk:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(chunk)
            chunk = b""
            if frame.eof:
                chunk, frame = frame.unused_data, None
    if frame is not None:
        raise EOFError("the file ends inside a frame")


def _read_parquet(path: Path, text_field: str, problems: Problems) -> _Texts:
    try:
        with pq.ParquetFile(path) as file:
            yield from _parquet_rows(path, file, text_field, problems)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        problems.bad(f"{path}: is damaged or no Parquet file ({reason})")


def _parquet_rows(path: Path, file: pq.ParquetFile, text_field: str, problems: Problems) -> _Texts:
    schema = file.schema_arrow
    if text_field not in schema.names:
        hint = did_you_mean(text_field, schema.names)
        problems.bad(f"{path}: has no column {text_field!r}{hint}", "set text_field, or on_error: skip")
        return
    kind = schema.field(text_field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        problems.bad(f"{path}: column {text_field!r} is of type {kind}; it must be string", "set text_field")
        return
    size, rows, row = path.stat().st_size, max(file.metadata.num_rows, 1), 0
    for batch in file.iter_batches(batch_size=_ROWS, columns=[text_field]):
        for value in batch.column(0):
            row += 1
            try:
                text = value.as_py() or ""
            except UnicodeDecodeError:
                problems.bad(f"{path}:{row}: row is not UTF-8")
            else:
                yield text, f"{path}:{row}", size * row // rows
