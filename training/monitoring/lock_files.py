"""The numbered files of a run's lock: creating them exclusively, and reading them without stale caches of NFS."""

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
    """Give the file `candidate` the second name `path`; return False when that name exists.

    Of several processes that try, at most one succeeds.
    """
    try:
        path.hardlink_to(candidate)
    except FileExistsError:
        # when a server's answer is lost, the client asks again and finds the file that it has created itself
        return RunOwner.from_json(_content(path)).token == owner.token
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:  # a file system without hard links: creation is exclusive too, but the file is empty for a moment
            with path.open("x", encoding="utf-8") as file:
                file.write(owner.to_json())
        except FileExistsError:
            return False
        sync(path)
    sync(path.parent)
    return True


def clean(folder: Path, number: int, lease: float) -> None:
    """Delete the files of earlier owners and those that killed candidates left; called before the new owner acts."""
    now = (folder / name_of(number)).stat().st_mtime
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            match = _NAME.fullmatch(path.name)
            left_behind = path.name.startswith(".") and now - path.stat().st_mtime > lease
            if left_behind or (match and int(match[1]) < number):
                path.unlink()


def forget_cached_names(folder: Path, token: str) -> None:
    """Change the folder, so that the client of a network file system reads its names from the server again."""
    probe = folder / f".probe-{token}"
    probe.touch()
    probe.unlink()


def newest(folder: Path) -> int:
    """Return the highest number in use; 0 when there is none."""
    try:
        return max((int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))), default=0)
    except FileNotFoundError:
        return 0


def name_of(number: int) -> str:
    """Return the file name of the owner with `number`."""
    return f"owner-{number:06d}.json"


def read(folder: Path, number: int) -> RunOwner:
    """Return the owner in file `number`; an empty `RunOwner` when there is no such file."""
    return RunOwner.from_json(_content(folder / name_of(number)))


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def modified(path: Path) -> float | None:
    """Return the file's modification time, as the file system gave it; None when the file is gone.

    It opens the file, because the client of a network file system then asks its server.
    """
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def inode(path: Path) -> int | None:
    """Return the inode number of the file with this name on the server; None when there is none."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return None
