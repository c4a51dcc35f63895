"""Detects a hanging rank, saves its stacks, names it and ends the job, without using a collective.

A thread of every rank writes what the rank is doing to `log/heartbeat-rank-N.json` and checks that it makes progress.
When it does not, the thread writes the rank's stacks to `log/stacks-rank-N.txt`. The heartbeats show which rank the
others wait for: most ranks that hang only wait in a collective for one that does not come.
"""

import contextlib
import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

log = logging.getLogger("memtrain")

EXIT_HANGING = 1
_PROJECT = Path(__file__).resolve().parents[2]
# a main thread inside one of these files waits in a collective for other ranks
_COLLECTIVES = ("distributed/distributed_c10d.py", "deepspeed/comm/torch.py", "_functional_collectives.py")


@dataclass(frozen=True)
class Beat:
    """What a rank is doing: the content of its heartbeat file."""

    rank: int
    step: int
    phase: str
    doing: str  # starting, building, data, step, evaluation, saving, closing
    since: float  # when it began to do this, seconds since the epoch
    alive: float  # when its thread last wrote the file, seconds since the epoch
    where: str = ""  # innermost line of the main thread; empty unless it hangs
    waiting: bool = False  # it waits in a collective for other ranks
    host: str = ""
    pid: int = 0

    def __str__(self) -> str:
        at = f"at {self.where}" if self.where else "giving no sign of life"
        return f"rank {self.rank}, step {self.step}, phase {self.phase or '-'}, {self.doing}, {at}"


def read_beat(path: Path) -> Beat | None:
    """Return the last heartbeat in the file at `path`; None when it cannot be read."""
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Beat(**raw)
    except (OSError, ValueError, TypeError):
        return None


class Watchdog:
    """The watching thread of one rank. `beat` only sets fields; the thread writes the file."""

    def __init__(
        self,
        run_folder: Path,
        rank: int,
        world: int,
        seconds: float,
        at_end: Callable[[str], None] = lambda message: None,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start the thread.

        Args:
            run_folder: the run's folder.
            rank: this rank.
            world: number of ranks.
            seconds: without progress for so long the rank counts as hanging (`faults.hang_seconds`).
            at_end: called with the message about the hang before the process is ended.
            busy: returns whether the rank's device has unfinished work. On a GPU a collective call returns at once, so
                a rank that waits for others stands at any line that reads a value from the device.
        """
        self._at_end, self._busy = at_end, busy
        self.folder, self.rank, self.world, self.seconds = run_folder / "log", rank, world, seconds
        self._stacks_path = self.folder / f"stacks-rank-{rank}.txt"
        self._main = threading.main_thread().ident
        self._host, self._pid = socket.gethostname(), os.getpid()
        self._beat = self._beat_of(0, "", "starting")
        self._moved = time.monotonic()
        self._stop, self._giving_up = threading.Event(), threading.Event()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stacks = self._stacks_path.open("w", encoding="utf-8")
        self._write(self._beat)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, step: int, phase: str, doing: str) -> None:
        """Record progress: the rank now does `doing` for step `step` of phase `phase`."""
        self._moved = time.monotonic()
        self._beat = self._beat_of(step, phase, doing)

    def _beat_of(self, step: int, phase: str, doing: str) -> Beat:
        now = time.time()
        return Beat(self.rank, step, phase, doing, now, now, host=self._host, pid=self._pid)

    def let_speak(self) -> None:
        """Give the thread's report precedence over an error about a lost rank; call it when such an error comes up.

        It does not return when the thread is reporting a hang, which then ends the process. A hanging rank may end
        first, and its collectives then fail on this rank.
        """
        if self._giving_up.is_set():
            self._thread.join()  # the thread ends the process

    def close(self) -> None:
        """Stop the thread and remove the heartbeat file, because the rank has ended normally."""
        self._stop.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._stacks.close()
        if not self._stacks_path.stat().st_size:
            self._stacks_path.unlink()
        self._heartbeat(self.rank).unlink(missing_ok=True)

    def _heartbeat(self, rank: int) -> Path:
        return self.folder / f"heartbeat-rank-{rank}.json"

    def _watch(self) -> None:
        pause = min(1.0, self.seconds / 4)
        before = time.monotonic()
        while not self._stop.wait(pause):
            late = time.monotonic() - before - pause
            before = time.monotonic()
            if late > self.seconds / 2:
                self._moved += late  # the whole process was suspended; this does not count as a hang
            # A timer in C writes the stacks when the main thread holds the GIL and this thread cannot run; the other
            # ranks then end the job.
            faulthandler.dump_traceback_later(1.5 * self.seconds + 10, file=self._stacks)
            self._write(self._beat)
            if before - self._moved > self.seconds:
                self._give_up()

    def _write(self, beat: Beat) -> None:
        """Write the heartbeat file without fsync, because only current readers use it."""
        path = self._heartbeat(self.rank)
        aside = path.with_suffix(".tmp")
        try:
            aside.write_text(json.dumps(asdict(beat) | {"alive": time.time()}), encoding="utf-8")
            aside.replace(path)
        except OSError as error:
            log.warning("%s cannot be written: %s", path, error)

    def _give_up(self) -> None:
        """Report who hangs and end this process, even when the report cannot be written (full disk)."""
        self._giving_up.set()
        try:
            self._say_who_hangs()
        except Exception:
            log.exception("rank %d hangs, and its watchdog failed", self.rank)
        finally:
            os._exit(EXIT_HANGING)

    def _say_who_hangs(self) -> None:
        where, waiting = _main_thread(self._main)
        if not waiting and self._busy():
            where, waiting = f"{where}, for its device", True
        own = Beat(**(asdict(self._beat) | {"where": where, "waiting": waiting}))
        with contextlib.suppress(OSError):
            print(f"{own}: no progress for {self.seconds:g} s", file=self._stacks, flush=True)
        faulthandler.dump_traceback(file=self._stacks, all_threads=True)
        self._write(own)
        beats = self._gather() | {self.rank: own}
        message = self._describe_hang(beats)
        first = min(rank for rank, beat in beats.items() if beat.where)
        if self.rank == first:  # one rank prints; the others only log
            with contextlib.suppress(OSError):  # the reader of standard error may be gone
                print(f"error: {message}", file=sys.stderr, flush=True)
        else:
            self._stop.wait(1.0)  # a launcher ends all ranks once one has ended: let the first one print before
        log.error("%s", message)
        self._at_end(message)
        logging.shutdown()

    def _gather(self) -> dict[int, Beat]:
        """Return the heartbeats of all ranks, after waiting up to 30 s until they too have noticed the hang."""
        deadline = time.monotonic() + min(30.0, max(3.0, self.seconds / 2))
        while True:
            beats = self._read()
            if all(rank in beats and beats[rank].where for rank in range(self.world)) or time.monotonic() > deadline:
                return beats
            self._stop.wait(0.2)

    def _read(self) -> dict[int, Beat]:
        beats = (read_beat(self._heartbeat(rank)) for rank in range(self.world))
        return {beat.rank: beat for beat in beats if beat}

    def _describe_hang(self, beats: dict[int, Beat]) -> str:
        """Return the message that names the hanging ranks.

        These are the ranks that do not wait in a collective and those without a heartbeat; when all wait, the ranks at
        the lowest step.
        """
        silent = [f"rank {rank}, no heartbeat file" for rank in range(self.world) if rank not in beats]
        stuck = [beat for beat in beats.values() if not beat.waiting]
        if not stuck and not silent:
            behind = min(beat.step for beat in beats.values())
            stuck = [beat for beat in beats.values() if beat.step == behind]
        named = "; ".join([str(beat) for beat in stuck] + silent)
        return (
            f"no progress for {self.seconds:g} s (faults.hang_seconds). Hanging: {named}. "
            f"{sum(beat.waiting for beat in beats.values())} of {self.world} ranks wait for others. Stacks: "
            f"{self.folder}/stacks-rank-*.txt. The job ends; run the same command again to continue from "
            "the last checkpoint"
        )


def _main_thread(ident: int | None) -> tuple[str, bool]:
    """Return where the main thread is, and whether that is a collective.

    The place is the innermost line of this project, and what it calls.
    """
    frame: FrameType | None = sys._current_frames().get(ident or 0)
    if frame is None:
        return "an ended main thread", False
    innermost, own = _line(frame), ""
    while frame is not None:
        if frame.f_code.co_filename.endswith(_COLLECTIVES):
            return f"{frame.f_code.co_name}, for other ranks", True
        if not own and Path(frame.f_code.co_filename).is_relative_to(_PROJECT):
            own = _line(frame)
        frame = frame.f_back
    return (f"{own}, in {innermost}" if own not in ("", innermost) else innermost), False


def _line(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    shown = path.relative_to(_PROJECT) if path.is_relative_to(_PROJECT) else path.name
    return f"{shown}:{frame.f_lineno} {frame.f_code.co_name}"
