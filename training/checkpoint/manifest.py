"""A checkpoint as files: its manifest, whether it is still what was written, and which one is the latest.

A checkpoint is believed only when `manifest.json` lists every file with its size and xxh3 and is itself unchanged.
Names in a manifest or in the pointer `latest` are plain file names: nothing in them leads out of the folder.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from data_prep.files import file_checksum, write_text
from training.errors import TrainingError

MANIFEST = "manifest.json"
STATE_FILE = "state.json"
METADATA = ".metadata"
POINTER = "latest"
STEP_NAME = re.compile(r"step-\d{8,}")
FILE_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*")


class DamagedError(TrainingError):
    """A checkpoint that is not what was written, or never was one."""


@dataclass(frozen=True)
class FileEntry:
    """What a file must be."""

    bytes: int
    xxh3: str

    @classmethod
    def of(cls, path: Path) -> "FileEntry":
        """The entry of a file as it is now."""
        return cls(path.stat().st_size, file_checksum(path))


def plain_name(name: Any) -> bool:
    """Whether `name` is that of a file inside a folder, and of nothing else."""
    return isinstance(name, str) and FILE_NAME.fullmatch(name) is not None and name not in (".", "..")


def _manifest_text(files: dict[str, FileEntry]) -> str:
    """The only text that a manifest of these files can have; its last entry is the checksum of the others."""
    content = {"version": 1, "files": {name: vars(files[name]) for name in sorted(files)}}
    return json.dumps(content | {"xxh3": xxhash.xxh3_64_hexdigest(json.dumps(content).encode())}, indent=1) + "\n"


def write_manifest(folder: Path, files: dict[str, FileEntry]) -> None:
    """`manifest.json` of `files`, whole or not at all."""
    write_text(folder / MANIFEST, _manifest_text(files))


def read_manifest(folder: Path) -> dict[str, FileEntry]:
    """The files a checkpoint must have.  Raises `DamagedError` when the manifest is missing or was changed."""
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        files = {name: FileEntry(**entry) for name, entry in content["files"].items()}
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DamagedError(f"{path}: is no manifest; the file was damaged or written by another program") from None
    for name in files:
        if not plain_name(name):
            raise DamagedError(f"{path}: names {name!r}; it must be a plain file name inside the folder")
    if text != _manifest_text(files):
        raise DamagedError(f"{path}: was changed after it was written")
    if missing := {STATE_FILE, METADATA} - files.keys():
        raise DamagedError(f"{path}: lists no {sorted(missing)[0]}")
    return files


def check_sizes(folder: Path) -> dict[str, FileEntry]:
    """The manifest's files, all there with their sizes, and `state.json`, which is small, with its content.

    Raises `DamagedError` naming the first that is not.
    """
    files = read_manifest(folder)
    for name, entry in files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise DamagedError(f"{path}: is missing")
        if (found := path.stat().st_size) != entry.bytes:
            raise DamagedError(f"{path}: has {found} bytes, the manifest says {entry.bytes}")
    check_files(folder, files, [STATE_FILE])  # it is used before all is verified
    return files


def check_files(folder: Path, files: dict[str, FileEntry], names: Iterable[str]) -> None:
    """Read the files `names` and compare their checksums.  Raises `DamagedError` naming the first that differs."""
    for name in names:
        try:
            found = file_checksum(folder / name)
        except OSError as error:
            raise DamagedError(f"{folder / name}: cannot be read ({error.strerror})") from None
        if found != files[name].xxh3:
            raise DamagedError(f"{folder / name}: its checksum is {found}, the manifest says {files[name].xxh3}")


def verify(folder: Path) -> dict[str, FileEntry]:
    """Every file's presence, size and checksum.  Raises `DamagedError` naming what is wrong."""
    files = check_sizes(folder)
    check_files(folder, files, files)
    return files


def steps_of(folder: Path) -> list[Path]:
    """Checkpoint folders in `checkpoints/`, oldest first, whole or not."""
    found = [path for path in folder.glob("step-*") if STEP_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def pointed(folder: Path) -> Path | None:
    """The checkpoint that the pointer names; None when there is no pointer.

    Raises `DamagedError` when the pointer names nothing in `folder`.
    """
    pointer = folder / POINTER
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{pointer}: cannot be read ({error})") from None
    if not STEP_NAME.fullmatch(name):
        raise DamagedError(f"{pointer}: names {name[:80]!r}; it must name a step-XXXXXXXX folder beside it")
    if not (folder / name).is_dir():
        raise DamagedError(f"{pointer}: names {name}, which is not there")
    return folder / name


def candidates(folder: Path) -> Iterator[tuple[Path, str]]:
    """Checkpoints to continue from, the best first, and for the first what was wrong with the pointer.

    The pointer's comes first, then all others from the newest on.
    """
    problem, first = "", None
    try:
        first = pointed(folder)
    except DamagedError as error:
        problem = str(error)
    if first is None and not problem:
        return  # nothing was ever saved: without a pointer, folders are what a killed first save left
    others = [path for path in reversed(steps_of(folder)) if path != first]
    for path in [first, *others] if first else others:
        yield path, problem
        problem = ""


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all there in their sizes, or None when nothing was saved.

    The pointer's comes first.  Raises `TrainingError` when checkpoints were saved and none is whole.
    """
    problems = []
    for path, pointer_problem in candidates(folder):
        problems += [pointer_problem] if pointer_problem else []
        try:
            check_sizes(path)
            return path
        except DamagedError as error:
            problems.append(str(error))
    if not problems and not (folder / POINTER).exists():
        return None
    raise nothing_whole(folder, problems)


def nothing_whole(folder: Path, problems: list[str]) -> TrainingError:
    """The error for a folder whose checkpoints are all damaged."""
    shown = "; ".join(problems) or f"{folder / POINTER}: names a checkpoint that is not there"
    return TrainingError(
        f"{folder}: no whole checkpoint is left ({shown}); copy one back, or delete the run's folder to start anew"
    )


def point(folder: Path, checkpoint: Path) -> None:
    """Make `checkpoint` the latest, at once and for good."""
    write_text(folder / POINTER, checkpoint.name + "\n")
