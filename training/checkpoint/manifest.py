"""The files of a checkpoint: its manifest, checks for damage, and the pointer to the latest one.

A checkpoint is accepted only when `manifest.json` lists every file with its size and xxh3 checksum and is itself
unchanged. Names in a manifest and in the pointer `latest` must be plain file names, so none leads out of the folder.
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
    """The files of a checkpoint were changed or are incomplete, or the folder is not a checkpoint."""


@dataclass(frozen=True)
class FileEntry:
    """Size and checksum that a file must have."""

    bytes: int
    xxh3: str

    @classmethod
    def of(cls, path: Path) -> "FileEntry":
        """Return the entry of a file as it is now."""
        return cls(path.stat().st_size, file_checksum(path))


def plain_name(name: Any) -> bool:
    """Return whether `name` is a plain file name, without a folder."""
    return isinstance(name, str) and FILE_NAME.fullmatch(name) is not None and name not in (".", "..")


def _manifest_text(files: dict[str, FileEntry]) -> str:
    """Return the text of the manifest of these files, whose last entry is the checksum of the other entries."""
    content = {"version": 1, "files": {name: vars(files[name]) for name in sorted(files)}}
    return json.dumps(content | {"xxh3": xxhash.xxh3_64_hexdigest(json.dumps(content).encode())}, indent=1) + "\n"


def write_manifest(folder: Path, files: dict[str, FileEntry]) -> None:
    """Write `manifest.json` for `files`, by renaming a complete file."""
    write_text(folder / MANIFEST, _manifest_text(files))


def read_manifest(folder: Path) -> dict[str, FileEntry]:
    """Return the files that a checkpoint must have. Raises `DamagedError` when the manifest is missing or changed."""
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        files = {name: FileEntry(**entry) for name, entry in content["files"].items()}
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DamagedError(f"{path}: is not a manifest; the file was damaged or written by another program") from None
    for name in files:
        if not plain_name(name):
            raise DamagedError(f"{path}: names {name!r}; it must be a plain file name inside the folder")
    if text != _manifest_text(files):
        raise DamagedError(f"{path}: was changed after it was written")
    if missing := {STATE_FILE, METADATA} - files.keys():
        raise DamagedError(f"{path}: lists no {sorted(missing)[0]}")
    return files


def check_sizes(folder: Path) -> dict[str, FileEntry]:
    """Check that all files exist with their sizes, and the checksum of the small `state.json`; return the manifest.

    Raises `DamagedError` naming the first file that is wrong.
    """
    files = read_manifest(folder)
    for name, entry in files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise DamagedError(f"{path}: is missing")
        if (found := path.stat().st_size) != entry.bytes:
            raise DamagedError(f"{path}: has {found} bytes, the manifest says {entry.bytes}")
    check_files(folder, files, [STATE_FILE])  # which is used before the other files are verified
    return files


def check_files(folder: Path, files: dict[str, FileEntry], names: Iterable[str]) -> None:
    """Read the files `names` and compare their checksums. Raises `DamagedError` naming the first that differs."""
    for name in names:
        try:
            found = file_checksum(folder / name)
        except OSError as error:
            raise DamagedError(f"{folder / name}: cannot be read ({error.strerror})") from None
        if found != files[name].xxh3:
            raise DamagedError(f"{folder / name}: its checksum is {found}, the manifest says {files[name].xxh3}")


def verify(folder: Path) -> dict[str, FileEntry]:
    """Check presence, size and checksum of every file; return the manifest.

    Raises `DamagedError` naming the first file that is wrong.
    """
    files = check_sizes(folder)
    check_files(folder, files, files)
    return files


def steps_of(folder: Path) -> list[Path]:
    """Return the checkpoint folders in `checkpoints/`, oldest first, also damaged ones."""
    found = [path for path in folder.glob("step-*") if STEP_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint folder's name."""
    return int(checkpoint.name.removeprefix("step-"))


def pointed(folder: Path) -> Path | None:
    """Return the checkpoint that the pointer names; None when there is no pointer.

    Raises `DamagedError` when the pointer cannot be read or names no checkpoint in `folder`.
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
    """Yield (checkpoint, problem) in the order in which a run tries to continue from them.

    The checkpoint that the pointer names comes first, then all others, newest first. problem: what is wrong with the
    pointer, given with the first one only.
    """
    problem, first = "", None
    try:
        first = pointed(folder)
    except DamagedError as error:
        problem = str(error)
    if first is None and not problem:
        return  # nothing was saved: without a pointer, a folder is left from a first save that was killed
    others = [path for path in reversed(steps_of(folder)) if path != first]
    for path in [first, *others] if first else others:
        yield path, problem
        problem = ""


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the first of `candidates` whose files all exist with their sizes; None when nothing was saved.

    Raises `TrainingError` when checkpoints were saved and none is whole.
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
    """Return the error for a folder whose checkpoints are all damaged."""
    shown = "; ".join(problems) or f"{folder / POINTER}: names a checkpoint that is not there"
    return TrainingError(
        f"{folder}: no whole checkpoint is left ({shown}); copy one back, or delete the run's folder to start anew"
    )


def point(folder: Path, checkpoint: Path) -> None:
    """Make `checkpoint` the latest, by replacing the pointer's file."""
    write_text(folder / POINTER, checkpoint.name + "\n")
