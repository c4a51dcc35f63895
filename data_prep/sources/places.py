"""Local paths and URLs of input, and listing the files there."""

import glob
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import fsspec
from pydantic import AfterValidator, PlainValidator

from data_prep.errors import DataError

LONGEST_NAME = 255  # bytes of a file's or folder's name that every common file system allows
_LONGEST_PATH = 4095


def local_path(path: Path | str) -> Path:
    """Returns `path` with `~` and `~user` expanded. Raises ValueError when no file can have such a path."""
    expanded = Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises for an unknown user
    if expanded.parts and expanded.parts[0].startswith("~"):
        raise ValueError(f"begins with {expanded.parts[0]!r}, the home of an unknown user; write the whole path")
    if "\0" in str(expanded):
        raise ValueError("has a zero character; remove it")
    longest = max((len(os.fsencode(part)) for part in expanded.parts), default=0)
    if longest > LONGEST_NAME or len(os.fsencode(expanded)) > _LONGEST_PATH:
        raise ValueError(
            f"is too long: a name in it has {longest} bytes, the whole path {len(os.fsencode(expanded)):,}; file "
            f"systems allow {LONGEST_NAME} and {_LONGEST_PATH:,}"
        )
    return expanded


def _as_typed(path: Path) -> Path:
    """Returns the path as typed, because the settings' hash covers it; those who use it expand `~`."""
    local_path(path)
    return path


def _as_place(value: Any) -> Any:
    """Returns a URL as text (a Path would drop one of its slashes), anything else as a Path."""
    if not isinstance(value, str | Path):
        raise ValueError(f"is {value!r}, not a valid path; give a path or a URL as text")
    return value if is_remote(value) else _as_typed(Path(value))


def _as_optional_place(value: Any) -> Any:
    return None if value is None else _as_place(value)


LocalPlace = Annotated[Path, AfterValidator(_as_typed)]
OptionalPlace = Annotated[Path | str | None, PlainValidator(_as_optional_place)]
Place = Annotated[Path | str, PlainValidator(_as_place)]


def is_remote(place: Path | str) -> bool:
    """Whether the place is a URL, which fsspec reads: "s3://bucket/x", "gs://…", "hf://datasets/…"."""
    return isinstance(place, str) and "://" in place


@dataclass(frozen=True, slots=True)
class InputFile:
    """An input file: path or URL, bytes, and a version that changes when it is written again ("": unknown)."""

    name: str
    bytes: int
    version: str = ""


@dataclass
class Listing:
    """The files of a place: those to read, sorted by name; counts of those left out; those that cannot be read."""

    files: list[InputFile] = field(default_factory=list)
    hidden: int = 0  # files and folders whose names begin with a dot
    again: int = 0  # folders reached a second time, through another link
    others: Counter[str] = field(
        default_factory=Counter
    )  # ending -> number of files with other endings than those asked for
    broken: list[str] = field(default_factory=list)  # messages: broken links, folders that cannot be listed

    def summary(self) -> str:
        """Returns, for people, which files are read and which are left out."""
        others = ", ".join(f"{count:,} {ending}" for ending, count in self.others.most_common(5))
        left_out = [
            f"{self.hidden:,} hidden" if self.hidden else "",
            f"{self.others.total():,} of other kinds ({others})" if self.others else "",
            f"{self.again:,} folders reached a second time" if self.again else "",
            f"{len(self.broken):,} that cannot be read" if self.broken else "",
        ]
        said = "; left out: " + ", ".join(filter(None, left_out)) if any(left_out) else ""
        return f"{len(self.files):,} files of {sum(file.bytes for file in self.files):,} bytes{said}"


def list_files(place: Path | str, endings: tuple[str, ...]) -> Listing:
    """Lists a file, a folder's files with these endings in upper or lower case, or the matches of a glob.

    Links are followed, and each folder is entered once. Hidden files and folders are left out unless they are named.

    Raises:
        DataError: there is no such file, or the storage cannot be read.
    """
    found = _list_remote(str(place), endings) if is_remote(place) else _list_local(Path(place).expanduser(), endings)
    if not found.files:
        kinds = ", ".join("*" + ending for ending in endings)
        said = found.broken[:1] or [f"left out: {found.hidden} hidden"] * bool(found.hidden)
        why = f" ({said[0]})" if said else ""
        raise DataError(f"sources.path: {place} holds no {kinds} file{why}; check path and kind")
    found.files.sort(key=lambda file: file.name)
    return found


def _list_local(root: Path, endings: tuple[str, ...]) -> Listing:
    found, folders = Listing(), _Folders(endings)
    try:
        is_there = root.exists()
    except OSError as error:
        raise DataError(f"sources.path: {root} cannot be read ({error.strerror}); give a readable path") from error
    if is_there:
        folders.take(root, found, named=True)
    elif root.is_symlink():
        raise DataError(f"sources.path: {root} is a link to {root.readlink()}, which does not exist; repair the link")
    elif glob.has_magic(str(root)):
        seen: set[str] = set()
        for path in folders.matching(root, found):
            if (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                folders.take(path, found, named=True)
        found.files = list({os.path.realpath(file.name): file for file in reversed(found.files)}.values())
    else:
        raise DataError(f"sources.path: {root} does not exist; give a file, a folder or a glob")
    return found


class _Folders:
    """Walks folders and links, each folder once."""

    def __init__(self, endings: tuple[str, ...]) -> None:
        self._endings = endings
        self._entered: set[tuple[int, int]] = set()

    def take(self, path: Path, found: Listing, named: bool = False) -> None:
        """Adds a file, or the files below a folder. named: the file is taken with any ending."""
        waiting = [(path, named)]
        while waiting:
            path, named = waiting.pop()
            try:
                info = path.stat()
            except OSError as error:
                what = f"is a link to {path.readlink()}, which" if path.is_symlink() else "is listed, but"
                found.broken.append(f"{path}: {what} cannot be read ({error.strerror})")
                continue
            if stat.S_ISDIR(info.st_mode):
                waiting += ((below, False) for below in self._enter(path, info, found))
            elif not stat.S_ISREG(info.st_mode):
                found.others["device or pipe"] += 1
            elif named or path.name.lower().endswith(self._endings):
                found.files.append(InputFile(path.as_posix(), info.st_size, str(info.st_mtime_ns)))
            else:
                found.others[path.suffix or "without ending"] += 1

    def matching(self, pattern: Path, found: Listing) -> list[Path]:
        """Returns what a glob matches, sorted. `glob` would not end in circles of links, and hides errors."""
        paths = [Path(pattern.anchor)]
        for part in pattern.relative_to(pattern.anchor).parts:
            if part == "**":
                paths = [below for path in paths for below in _folders_below(path, found)]
            elif glob.has_magic(part):
                inside = (below for path in paths if path.is_dir() for below in _inside(path, found))
                paths = [p for p in inside if fnmatchcase(p.name, part) and p.name.startswith(".") <= (part[0] == ".")]
            else:
                paths = [path / part for path in paths if os.path.lexists(path / part)]
        return sorted(set(paths), key=lambda path: (len(path.parts), path))

    def _enter(self, folder: Path, info: os.stat_result, found: Listing) -> list[Path]:
        """Returns the folder's content that is not hidden; nothing when it was entered before."""
        if (info.st_dev, info.st_ino) in self._entered:
            found.again += 1
            return []
        self._entered.add((info.st_dev, info.st_ino))
        everything = _inside(folder, found)[::-1]  # `take` pops the last first
        shown = [path for path in everything if not path.name.startswith(".")]
        found.hidden += len(everything) - len(shown)
        return shown


def _inside(folder: Path, found: Listing) -> list[Path]:
    """Returns a folder's content, sorted; when it cannot be listed, nothing, and notes that in `found`."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        found.broken.append(f"{folder}: the folder cannot be listed ({error.strerror})")
        return []


def _folders_below(folder: Path, found: Listing) -> list[Path]:
    """Returns the folder and the folders below it that are not hidden, each once, by its shortest path."""
    entered: dict[str, Path] = {}
    level = [folder]
    while level:
        new: list[Path] = []
        for path in level:
            if path.is_dir() and (real := os.path.realpath(path)) not in entered:
                entered[real] = path
                new += [below for below in _inside(path, found) if not below.name.startswith(".")]
        level = new
    return list(entered.values())


def _list_remote(url: str, endings: tuple[str, ...]) -> Listing:
    system, path = file_system(url)
    has_magic = glob.has_magic(path)
    try:
        infos = list((system.glob if has_magic else system.find)(path, detail=True).values())
    except Exception as error:  # each storage raises its own errors
        raise DataError(
            f"sources.path: {url} cannot be listed ({error}); check the URL and your credentials"
        ) from error
    found = Listing()
    for info in infos:
        name = str(info["name"])
        below = [] if has_magic else PurePosixPath(name.removeprefix(path)).parts
        if info["type"] != "file":
            continue
        if any(part.startswith(".") for part in below):
            found.hidden += 1
        elif has_magic or name == path or name.lower().endswith(endings):
            known = (info.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime"))
            version = str(next((value for value in known if value), ""))
            found.files.append(InputFile(str(system.unstrip_protocol(name)), int(info["size"]), version))
        else:
            found.others[PurePosixPath(name).suffix or "without ending"] += 1
    return found


def file_system(url: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a URL and the path in it.

    Raises DataError when the protocol's package is not installed.
    """
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{url}: {error}; for s3:// install the extra remote: pip install 'memtrain[remote]'"
        ) from error
    return system, path
