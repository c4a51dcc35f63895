"""Local paths and URLs: which is which, and what lies there."""

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import fsspec
from pydantic import PlainValidator

from .errors import DataError


def _as_place(value: Any) -> Any:
    """A URL stays text (a Path would take one of its slashes), anything else becomes a Path."""
    if not isinstance(value, str | Path):
        raise ValueError(f"is {value!r}, not a valid path; give a path or a URL as text")
    return value if is_remote(value) else Path(value)


def _as_optional_place(value: Any) -> Any:
    return None if value is None else _as_place(value)


OptionalPlace = Annotated[Path | str | None, PlainValidator(_as_optional_place)]
Place = Annotated[Path | str, PlainValidator(_as_place)]


def is_remote(place: Path | str) -> bool:
    """Whether fsspec has to fetch it: "s3://bucket/x", "gs://…", "hf://datasets/…"."""
    return isinstance(place, str) and "://" in place


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that is read: its path or URL, and its size."""

    name: str
    bytes: int


def find_files(place: Path | str, endings: tuple[str, ...]) -> list[InputFile]:
    """The file, the folder's files of these endings, or what the glob matches; sorted by name.

    Raises:
        DataError: nothing is there, or the storage cannot be read.
    """
    found = _find_remote(str(place), endings) if is_remote(place) else _find_local(Path(place).expanduser(), endings)
    if not found:
        kinds = ", ".join("*" + ending for ending in endings)
        raise DataError(f"sources.path: {place} holds no {kinds} file; check path and kind")
    return sorted(found, key=lambda file: file.name)


def _find_local(root: Path, endings: tuple[str, ...]) -> list[InputFile]:
    if root.is_file():
        paths = [root]
    elif root.is_dir():
        paths = [path for path in root.rglob("*") if path.name.endswith(endings)]
    elif glob.has_magic(str(root)):
        # Path.glob takes no absolute pattern.
        paths = [Path(path) for path in glob.glob(str(root), recursive=True)]  # noqa: PTH207
    else:
        raise DataError(f"sources.path: {root} does not exist; give a file, a folder or a glob")
    return [InputFile(path.as_posix(), path.stat().st_size) for path in paths if path.is_file()]


def _find_remote(url: str, endings: tuple[str, ...]) -> list[InputFile]:
    system, path = file_system(url)
    try:
        if glob.has_magic(path):
            infos = list(system.glob(path, detail=True).values())
        else:
            infos = list(system.find(path, detail=True).values())
            infos = [info for info in infos if info["name"] == path or info["name"].endswith(endings)]
    except Exception as error:  # every storage raises its own
        raise DataError(
            f"sources.path: {url} cannot be listed ({error}); check the URL and your credentials"
        ) from error
    files = [info for info in infos if info["type"] == "file"]
    return [InputFile(str(system.unstrip_protocol(info["name"])), int(info["size"])) for info in files]


def file_system(url: str) -> tuple[Any, str]:
    """(fsspec file system, path in it) of a URL. Raises DataError when the protocol's package is not installed."""
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{url}: {error}; for s3:// install the extra remote: pip install 'memtrain[remote]'"
        ) from error
    return system, path
