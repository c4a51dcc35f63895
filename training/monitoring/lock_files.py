"""The files of a run's lock: numbered, each created by one process, read past a network file system's caches."""

import contextlib
import errno
import os
import re
from pathlib import Path

from data_prep.files import sync
from training.monitoring.run_owner import RunOwner

FOLDER = "lock"  # in a run's folder
_NAME = re.compile(r"owner-(\d{6,})\.json")
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


def create(candidate: Path, path: Path, owner: RunOwner) -> bool:
    """Give `candidate` the name `path` too; False where that exists.  At most one process succeeds."""
    try:
        path.hardlink_to(candidate)
    except FileExistsError:
        # a server's answer that was lost on its way makes the client ask again, and find its own file
        return RunOwner.from_json(_content(path)).token == owner.token
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:  # a file system without hard links: exclusive too, but for a moment without content
            with path.open("x", encoding="utf-8") as file:
                file.write(owner.to_json())
        except FileExistsError:
            return False
        sync(path)
    sync(path.parent)
    return True


def clean(folder: Path, number: int, lease: float) -> None:
    """Delete what earlier owners and killed candidates left; the earlier owner's file goes before this one acts."""
    now = (folder / name_of(number)).stat().st_mtime
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            match = _NAME.fullmatch(path.name)
            left_behind = path.name.startswith(".") and now - path.stat().st_mtime > lease
            if left_behind or (match and int(match[1]) < number):
                path.unlink()


def forget_cached_names(folder: Path, token: str) -> None:
    """Change a folder, after which a network file system's client reads its names anew."""
    probe = folder / f".probe-{token}"
    probe.touch()
    probe.unlink()


def newest(folder: Path) -> int:
    """Return the highest number in use, 0 for none."""
    try:
        return max((int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))), default=0)
    except FileNotFoundError:
        return 0


def name_of(number: int) -> str:
    """Return the file name of the owner with `number`."""
    return f"owner-{number:06d}.json"


def read(folder: Path, number: int) -> RunOwner:
    """Return the owner with `number`; one of whom nothing is known where there is none."""
    return RunOwner.from_json(_content(folder / name_of(number)))


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def modified(path: Path) -> float | None:
    """Return when the file system was last told to change the file; None where it is gone.

    It is opened for that: a network file system then asks its server.
    """
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def inode(path: Path) -> int | None:
    """Return the number of the file that has this name on the server; None where none has."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return None
