"""Atomic writes, checksums, and the reading of JSON and lines."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

_CHUNK = 4 * 1024 * 1024


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write; afterwards syncs it to disk and renames it to `path`.

    When the block raises, `path` is not changed and the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically: after a failure the file that was there is unchanged."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_checksum(path: Path) -> str:
    """Returns the xxh3 (64 bit, hex) of a file's bytes, which are read in chunks."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text; an integer of more digits than Python reads becomes a float.

    Raises ValueError for text that is no JSON or is nested too deeply.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError:  # Python refuses integers of too many digits
        return json.loads(text, parse_int=float)


def lines_of(text: str) -> list[str]:
    """Returns the lines of a text, cut at newlines alone: `splitlines` also cuts at U+2028, legal in JSON strings."""
    lines = text.removeprefix("\ufeff").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def encodes(text: str) -> bool:
    """Whether the text can be written as UTF-8; a lone surrogate, which JSON can spell, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
