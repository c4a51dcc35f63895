"""Readers of the text formats. Each yields (content, origin, file bytes read so far) and reports damaged records."""

import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from numpy.typing import NDArray

from data_prep.config import SourceConfig
from data_prep.files import parse_json
from data_prep.shards.columns import numpy_view
from data_prep.sources.problems import Problems
from data_prep.suggest import did_you_mean

_PLACE = re.compile(r"\{(context|question)\}")
_CHUNK = 1024 * 1024
_ROWS = 1024
_LARGEST_WINDOW = 2**31  # bytes of memory that a .zst may need: the format's maximum, written by `zstd --long=31`


@dataclass(frozen=True, slots=True)
class Exercise:
    """A text whose answers alone are learned; turns: (prompt, answer) of each, in order."""

    turns: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        return "".join(part for turn in self.turns for part in turn)


Content = str | Exercise | NDArray[Any]
Records = Iterator[tuple[Content, str, int]]


@dataclass(frozen=True, slots=True)
class Opened:
    """An input file: path of its bytes, its name in messages, and its source's settings."""

    path: Path
    name: str
    source: SourceConfig


def read_text(file: Opened, problems: Problems) -> Records:
    """Yield the one document of a UTF-8 text file; a file in another encoding becomes a problem."""
    content = file.path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.bad(f"{file.name}: byte {error.start} is {content[error.start]:#04x}, which is not UTF-8")
    else:
        yield text, file.name, len(content)


def read_jsonl(file: Opened, problems: Problems) -> Records:
    """Yield a document per JSON line; a line without a text becomes a problem."""
    with file.path.open("rb") as opened:
        number = 0
        try:
            for number, line in enumerate(_lines(file.name, opened), start=1):
                if line.strip():
                    origin = f"{file.name}:{number}"
                    content = _content_of_line(line, origin, file.source, problems)
                    if content is not None:
                        yield content, origin, opened.tell()
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            problems.bad(f"{file.name}:{number + 1}: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Returns why compressed data cannot be unpacked."""
    if "too much memory" in str(error):  # zstandard's words
        return (
            f"its window is above {_LARGEST_WINDOW:,} bytes, the most allowed; compress it with zstd --long=31 or less"
        )
    return f"compressed data is damaged or cut short ({error})"


def _content_of_line(line: bytes, origin: str, source: SourceConfig, problems: Problems) -> Content | None:
    """Returns the content of a JSONL line, or None when the line is damaged."""
    try:
        record = parse_json(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        problems.bad(f"{origin}: byte {error.start} of the line is {line[error.start]:#04x}, which is not UTF-8")
        return None
    except ValueError as error:
        problems.bad(f"{origin}: line is no JSON ({error})")
        return None
    if not isinstance(record, dict):
        problems.bad(f"{origin}: line is a JSON {type(record).__name__}; it must be an object")
        return None
    if source.kind != "task":
        return _text_of(record, source.text_field, origin, problems)
    if "turns" not in record:
        turn = _turn_of(record, origin, source.prompt, problems)
        return Exercise((turn,)) if turn else None
    turns = record["turns"]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        problems.bad(f"{origin}: 'turns' is not a list of objects; give each a context, a question and an answer")
        return None
    pairs = []
    for number, turn in enumerate(turns, start=1):
        if (pair := _turn_of(turn, f"{origin}, turn {number}", source.prompt, problems)) is None:
            return None
        pairs.append(pair)
    return Exercise(tuple(pairs))


def _turn_of(record: dict[str, Any], origin: str, prompt: str, problems: Problems) -> tuple[str, str] | None:
    """Returns the prompt with its places filled and the answer, or None when the record is damaged."""
    parts = {key: _text_of(record, key, origin, problems) for key in ("context", "question", "answer")}
    if any(part is None for part in parts.values()):
        return None
    if not str(parts["answer"]).strip():
        problems.bad(f"{origin}: 'answer' is empty; there is nothing to learn")
        return None
    # One pass, so that braces within a part stay text.
    return _PLACE.sub(lambda place: str(parts[place[1]]), prompt), str(parts["answer"])


def _text_of(record: dict[str, Any], key: str, origin: str, problems: Problems) -> str | None:
    if key not in record:
        hint = did_you_mean(key, record)
        problems.bad(f"{origin}: object has no key {key!r}{hint}", "set text_field, or on_error: skip")
    elif record[key] is None:
        return ""
    elif not isinstance(record[key], str):
        problems.bad(f"{origin}: {key!r} is a {type(record[key]).__name__}; it must be a string")
    else:
        return str(record[key])
    return None


def _lines(name: str, file: BinaryIO) -> Iterator[bytes]:
    if name.lower().endswith(".gz"):
        with gzip.open(file) as unpacked:
            yield from unpacked
    elif name.lower().endswith(".zst"):
        rest = b""
        for chunk in _unpack_zstd(file):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
        yield rest
    else:
        yield from file


def _unpack_zstd(file: BinaryIO) -> Iterator[bytes]:
    # Not stream_reader, which does not notice that a file was cut short.
    frame = None
    while chunk := file.read(_CHUNK):
        while chunk:
            frame = frame or zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
            yield frame.decompress(chunk)
            chunk = b""
            if frame.eof:
                chunk, frame = frame.unused_data, None
    if frame is not None:
        raise EOFError("the file ends inside a frame")


def read_parquet(file: Opened, problems: Problems) -> Records:
    """Yield a document per row of a Parquet file; a damaged file becomes a problem."""
    try:
        with pq.ParquetFile(file.path) as opened:
            if _has_texts(opened.schema_arrow, file, problems):
                batches = opened.iter_batches(batch_size=_ROWS, columns=[file.source.text_field])
                yield from _rows(batches, opened.metadata.num_rows, file, problems)
    except (pa.ArrowException, OSError, UnicodeError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the operating system, not of the format
        reason = str(error).partition("\n")[0]
        problems.bad(f"{file.name}: is damaged or not a Parquet file ({reason})")


def read_arrow(file: Opened, problems: Problems) -> Records:
    """Reads an Arrow IPC file, or the stream format that the package datasets writes."""
    try:
        with pa.memory_map(str(file.path)) as mapped:
            with pa.OSFile(str(file.path)) as start:
                is_file = start.read(6) == b"ARROW1"
            table = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(mapped).read_all()
        if _has_texts(table.schema, file, problems):
            for chunk in table.column(file.source.text_field).chunks:
                _validate(chunk)  # reading does not validate, and damaged offsets would crash the process
            batches = table.select([file.source.text_field]).to_batches(max_chunksize=_ROWS)
            yield from _rows(iter(batches), table.num_rows, file, problems)
    except (pa.ArrowException, OSError, UnicodeError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the operating system, not of the format
        reason = str(error).partition("\n")[0]
        problems.bad(f"{file.name}: is damaged or not an Arrow file ({reason})")


def _has_texts(schema: pa.Schema, file: Opened, problems: Problems) -> bool:
    field = file.source.text_field
    if field not in schema.names:
        hint = did_you_mean(field, schema.names)
        problems.bad(f"{file.name}: has no column {field!r}{hint}", "set text_field, or on_error: skip")
        return False
    kind = schema.field(field).type
    if not _holds_text(kind):
        problems.bad(f"{file.name}: column {field!r} is of type {kind}; it must be string", "set text_field")
        return False
    return True


def _holds_text(kind: pa.DataType) -> bool:
    """Whether the type's values are texts or null, in any of Arrow's encodings."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _holds_text(kind.value_type)
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(test(kind) for test in tests)


def _validate(values: pa.Array) -> None:
    """Raises ArrowInvalid when offsets or indices are out of range; invalid UTF-8 is found when a text is read."""
    if pa.types.is_dictionary(values.type):
        _validate(values.dictionary)
        values.indices.validate(full=True)
        known = numpy_view(values.indices.drop_null())
        if len(known) and not 0 <= known.min() <= known.max() < len(values.dictionary):
            raise pa.ArrowInvalid("an index is outside the dictionary")
        return
    try:
        values.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise


def _rows(batches: Iterator[pa.RecordBatch], rows: int, file: Opened, problems: Problems) -> Records:
    size, row = file.path.stat().st_size, 0
    for batch in batches:
        for value in batch.column(0):
            row += 1
            try:
                text = value.as_py() or ""
            except UnicodeDecodeError:
                problems.bad(f"{file.name}:{row}: row is not UTF-8")
            else:
                yield text, f"{file.name}:{row}", size * row // max(rows, 1)


def as_tokens(content: NDArray[Any], bos_id: int, eos_id: int) -> NDArray[Any]:
    """Returns the document's tokens without delimiters that its file has at the ends."""
    if len(content) and content[0] in (bos_id, eos_id):
        content = content[1:]
    if len(content) and content[-1] == eos_id:
        content = content[:-1]
    return np.asarray(content)
