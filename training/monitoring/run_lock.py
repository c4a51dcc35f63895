"""The lock of a run's folder: one living process owns it, and a dead owner's lock is taken over.

`RUN/lock/owner-000007.json` names the owner; the file with the highest number is valid. A process takes the lock by
creating the next number with a hard link, which succeeds for one process only, also on NFS. So at most one of the
processes that find an owner dead replaces it. The file with the highest number is never deleted, only marked as
released, so that a process that read the folder long ago cannot create the same number again.

The owner touches its file every `Timing.renew` seconds. Ages are differences of modification times that the file system
itself sets, so the clocks of the machines do not matter.
"""

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.files import sync, write_text
from training.errors import ConfigError, TrainingError
from training.monitoring.lock_files import (
    FOLDER,
    clean,
    create,
    forget_cached_names,
    inode,
    modified,
    name_of,
    newest,
    read,
)
from training.monitoring.run_owner import RunOwner, liveness_of

log = logging.getLogger("memtrain")

# a clock that also counts while the machine is suspended, where the system has one
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class OwnedError(ConfigError):
    """Another process owns the run."""


class LostLockError(TrainingError):
    """Another process has taken the run over, because this one gave no sign of life for too long."""


@dataclass(frozen=True)
class Timing:
    """The intervals of the lock, in seconds."""

    renew: float = 10.0  # between two heartbeats
    lease: float = 60.0  # an owner on another machine counts as dead after so long without a heartbeat
    watch: float = 15.0  # an owner is watched for at least so long before it counts as dead


class RunLock:
    """The lock of one run, held by this process from `take` to `release`."""

    def __init__(self, path: Path, number: int, owner: RunOwner, timing: Timing) -> None:
        """Start the heartbeat of a lock that `RunLock.take` has created; not to be called directly."""
        self.path, self.owner = path, owner
        self._number, self._timing = number, timing
        self._file = os.open(path, os.O_RDONLY)
        self._mutex, self._stop = threading.Lock(), threading.Event()
        self._renewed, self._lost = _now(), ""
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._thread.start()

    @classmethod
    def take(
        cls,
        run_folder: Path,
        owner: RunOwner | None = None,
        timing: Timing | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> "RunLock":
        """Become the owner of `run_folder`, which is made where it is missing.

        Whether an earlier owner on this machine lives is known at once. For one on another machine the Slurm job or the
        heartbeat tells, which takes up to `timing.renew` seconds for a living owner and `timing.lease` for a dead one.

        Args:
            run_folder: the run's folder.
            owner: the new owner; default: this process.
            timing: intervals; all processes of a run must use the same.
            say: called with a message about the owner that is waited for.

        Raises:
            OwnedError: another process owns the run, and it lives or may live.
            OSError: the folder cannot be written.
        """
        owner, timing = owner or RunOwner.this_process(), timing or Timing()
        folder = run_folder / FOLDER
        refuse_living_owner(run_folder, owner)  # before anything is written
        folder.mkdir(parents=True, exist_ok=True)
        candidate = folder / f".candidate-{owner.token}"
        try:
            candidate.write_text(owner.to_json(), encoding="utf-8")
            sync(candidate)
            while True:
                number = newest(folder)
                before = read(folder, number)
                if not before.released and _is_alive(folder, number, before, owner, candidate, timing, say):
                    raise OwnedError(_refusal(run_folder, before))
                path = folder / name_of(number + 1)
                if not create(candidate, path, owner):
                    continue  # another process was faster
                # the owner found dead must still be the previous one: the folder may have been emptied meanwhile
                if newest(folder) == number + 1 and read(folder, number).token == before.token:
                    clean(folder, number + 1, timing.lease)
                    return cls(path, number + 1, owner, timing)
                path.unlink(missing_ok=True)
        finally:
            candidate.unlink(missing_ok=True)

    @property
    def lost(self) -> bool:
        """Whether this process has found that another one took the run over."""
        return bool(self._lost)

    def confirm(self) -> None:
        """Return when this process certainly owns the run; call it before the run's files are changed.

        It normally only reads a clock. When the heartbeat has not been renewed for half the lease, it asks the file
        system. Raises `LostLockError`, and `OSError` when the file system fails.
        """
        if self._stop.is_set():
            raise LostLockError(f"{self.path.parent.parent}: this process has given the run back")
        if not self._lost and _now() - self._renewed > self._timing.lease / 2:
            with contextlib.suppress(LostLockError):
                self._renew()
        if self._lost:
            raise LostLockError(self._lost)

    def release(self) -> None:
        """Give the lock back; calling it again does nothing."""
        if self._stop.is_set():
            return
        self._close()
        if not self._lost and newest(self.path.parent) == self._number:
            with contextlib.suppress(OSError):  # without the mark the next start finds that this process has ended
                write_text(self.path, replace(self.owner, released=True).to_json())

    def discard(self) -> None:
        """Give the lock back and remove its empty folders, for a run that did not start."""
        self._close()
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a folder is not empty
            self.path.parent.rmdir()
            self.path.parent.parent.rmdir()

    def _close(self) -> None:
        self._stop.set()
        self._thread.join()
        os.close(self._file)

    def _beat(self) -> None:
        complained = False
        while not self._stop.wait(self._timing.renew):
            try:
                self._renew()
            except LostLockError as error:
                log.error("%s", error)
                return
            except OSError as error:
                if not complained:
                    log.warning("%s cannot be renewed: %s", self.path, error)
                complained = True

    def _renew(self) -> None:
        """Touch this process's file, and raise `LostLockError` when it is not the valid one any more."""
        with self._mutex:
            began = _now()
            if began - self._renewed > self._timing.lease / 2:
                with contextlib.suppress(FileNotFoundError):
                    forget_cached_names(self.path.parent, self.owner.token)
            try:
                os.utime(self._file)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESTALE):  # the file was deleted: the check below finds it
                    raise
            if newest(self.path.parent) != self._number or inode(self.path) != os.fstat(self._file).st_ino:
                now = read(self.path.parent, newest(self.path.parent))
                who = f"taken over by {now}" if now.token else "taken away: its lock was deleted"
                self._lost = (
                    f"{self.path.parent.parent}: the run was {who}, while this process ({self.owner.pid} on "
                    f"{self.owner.host}) gave no sign of life; it ends and writes nothing more into the run's folder"
                )
                raise LostLockError(self._lost)
            self._renewed = began


def owner_of(run_folder: Path) -> RunOwner | None:
    """Return the last owner of a run's lock; None when there was none or it released the lock."""
    owner = read(run_folder / FOLDER, newest(run_folder / FOLDER))
    return owner if owner.token and not owner.released else None


def refuse_living_owner(run_folder: Path, me: RunOwner | None = None) -> None:
    """Raise `OwnedError` when a process that is known to be alive owns the run; write nothing."""
    owner = owner_of(run_folder)
    if owner is not None and liveness_of(owner, me or RunOwner.this_process()) == "alive":
        raise OwnedError(_refusal(run_folder, owner))


def _is_alive(
    folder: Path,
    number: int,
    owner: RunOwner,
    me: RunOwner,
    candidate: Path,
    timing: Timing,
    say: Callable[[str], None],
) -> bool:
    """Return whether the owner in file `number` counts as alive; when nothing else tells, wait for its heartbeat."""
    if number == 0:
        return False
    liveness = liveness_of(owner, me)
    if liveness != "unknown":
        return liveness == "alive"
    path, began, said = folder / name_of(number), _now(), False
    first = modified(path)
    while (heard := modified(path)) == first and heard is not None:
        os.utime(candidate)
        silent, watched = (modified(candidate) or 0.0) - heard, _now() - began
        if silent > timing.lease and watched > timing.watch:
            return False
        if not said and watched > timing.renew / 2:
            say(f"{folder.parent} was last trained by {owner}; waiting up to {timing.lease:.0f} s for a sign of life")
            said = True
        time.sleep(timing.renew / 20)
    return heard is not None and not read(folder, number).released


def _refusal(run_folder: Path, owner: RunOwner) -> str:
    heard = modified(run_folder / FOLDER / name_of(newest(run_folder / FOLDER)))
    age = f", last sign of life {max(0.0, time.time() - heard):.0f} s ago" if heard else ""
    return (
        f"run.name: {run_folder} is being trained by {owner}{age}; wait until it has ended, let it save and stop with "
        f"{owner.way_to_stop}, or choose another run.name"
    )


def _now() -> float:
    return time.clock_gettime(_CLOCK)
