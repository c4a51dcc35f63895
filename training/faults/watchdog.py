"""A rank that hangs is named, its stacks are kept, and the job ends; no collective takes part in that.

Every rank's thread writes what the rank is doing to `log/heartbeat-rank-N.json` and watches that it goes on.  When it
does not, the rank's stacks go to `log/stacks-rank-N.txt` and the heartbeats tell who waits for whom: most hanging ranks
only wait in a collective for the one that does not come.
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
# frames that mean: this rank did its part and waits for others
_COLLECTIVES = ("distributed/distributed_c10d.py", "deepspeed/comm/torch.py", "_functional_collectives.py")


@dataclass(frozen=True)
class Beat:
    """What a rank is doing."""

    rank: int
    step: int
    phase: str
    doing: str  # building, data, step, evaluation, saving, closing
    since: float  # seconds since the epoch
    alive: float  # when its thread last wrote this
    where: str = ""  # the innermost line of the main thread, once it hangs
    waiting: bool = False  # in a collective, for others
    host: str = ""
    pid: int = 0

    def __str__(self) -> str:
        at = f"at {self.where}" if self.where else "giving no sign of life"
        return f"rank {self.rank}, step {self.step}, phase {self.phase or '-'}, {self.doing}, {at}"


def read_beat(path: Path) -> Beat | None:
    """What a rank last wrote of itself, if it can be read."""
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Beat(**raw)
    except (OSError, ValueError, TypeError):
        return None


class Watchdog:
    """One rank's thread.  `beat` costs next to nothing; the thread does the writing."""

    def __init__(
        self,
        run_folder: Path,
        rank: int,
        world: int,
        seconds: float,
        at_end: Callable[[str], None] = lambda message: None,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """`at_end` is called with what is said when the rank hangs, before its process is ended.

        busy: whether the rank's device works on something.  On a GPU a collective returns at once, and who waits for
        other ranks does so wherever the next number is read.
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
        """The rank goes on: it now does `doing` for `step`."""
        self._moved = time.monotonic()
        self._beat = self._beat_of(step, phase, doing)

    def _beat_of(self, step: int, phase: str, doing: str) -> Beat:
        now = time.time()
        return Beat(self.rank, step, phase, doing, now, now, host=self._host, pid=self._pid)

    def let_speak(self) -> None:
        """Call where a lost rank was noticed: returns unless the thread is just ending the job, which says more.

        The hanging rank may end first, and what this rank was waiting for then fails.
        """
        if self._giving_up.is_set():
            self._thread.join()  # it ends the process

    def close(self) -> None:
        """Stop watching: the rank has come to its end."""
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
                self._moved += late  # the whole process was suspended, which is no hang
            # in C, for a rank that holds Python's lock and would not let this thread run: the others end the job
            faulthandler.dump_traceback_later(1.5 * self.seconds + 10, file=self._stacks)
            self._write(self._beat)
            if before - self._moved > self.seconds:
                self._give_up()

    def _write(self, beat: Beat) -> None:
        """Without a wait for the disk: it is for who looks now."""
        path = self._heartbeat(self.rank)
        aside = path.with_suffix(".tmp")
        try:
            aside.write_text(json.dumps(asdict(beat) | {"alive": time.time()}), encoding="utf-8")
            aside.replace(path)
        except OSError as error:
            log.warning("%s cannot be written: %s", path, error)

    def _give_up(self) -> None:
        """Say who hangs, and end this process as it is, whatever cannot be said: on a full disk nothing is written."""
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
        message = self._verdict(beats)
        first = min(rank for rank, beat in beats.items() if beat.where)
        if self.rank == first:  # one voice on the screen; the others' files have it too
            with contextlib.suppress(OSError):  # nobody reads it any more
                print(f"error: {message}", file=sys.stderr, flush=True)
        else:
            self._stop.wait(1.0)  # launchers end all ranks once one has ended: not before the voice
        log.error("%s", message)
        self._at_end(message)
        logging.shutdown()

    def _gather(self) -> dict[int, Beat]:
        """What the other ranks say of themselves, after giving them time to notice too."""
        deadline = time.monotonic() + min(30.0, max(3.0, self.seconds / 2))
        while True:
            beats = self._read()
            if all(rank in beats and beats[rank].where for rank in range(self.world)) or time.monotonic() > deadline:
                return beats
            self._stop.wait(0.2)

    def _read(self) -> dict[int, Beat]:
        beats = (read_beat(self._heartbeat(rank)) for rank in range(self.world))
        return {beat.rank: beat for beat in beats if beat}

    def _verdict(self, beats: dict[int, Beat]) -> str:
        """Who holds the others up: who hangs outside a collective, or shows no sign of life, or is behind."""
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
    """The main thread's innermost line of this project and what that calls, and whether it waits in a collective."""
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
