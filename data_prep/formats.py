"""A reader for each file format: yields (text, origin, file bytes read so far), reports what is damaged."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from .problems import Problems
from .suggest import did_you_mean

_CHUNK = 1024 * 1024
_ROWS = 1024

Texts = Iterator[tuple[str, str, int]]


def read_text(path: Path, text_field: str, problems: Problems) -> Texts:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.bad(f"{path}: byte {error.start} is {content[error.start]:#04x}, which is not UTF-8")
    else:
        yield text, str(path), len(content)


def read_jsonl(path: Path, text_field: str, problems: Problems) -> Texts:
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
        problems.bad(f"{origin}: byte {error.start} of the line is {line[error.start]:#04x}, which is not UTF-8")
    except (json.JSONDecodeError, RecursionError) as error:
        problems.bad(f"{origin}: line is no JSON ({error})")
    else:
        if not isinstance(record, dict):
            problems.bad(f"{origin}: line is a JSON {type(record).__name__}; it must be an object")
        elif text_field not in record:
            hint = did_you_mean(text_field, record)
            problems.bad(f"{origin}: object has no key {text_field!r}{hint}", "set text_field, or on_error: skip")
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


def read_parquet(path: Path, text_field: str, problems: Problems) -> Texts:
    try:
        with pq.ParquetFile(path) as file:
            yield from _parquet_rows(path, file, text_field, problems)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        problems.bad(f"{path}: is damaged or no Parquet file ({reason})")


def _parquet_rows(path: Path, file: pq.ParquetFile, text_field: str, problems: Problems) -> Texts:
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
