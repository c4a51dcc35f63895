"""Random starts, kills and stops of processes that own a run by turns: never two at once, and no line lost or doubled.

    python -m tests.e2e.fault_locks --starts 200

The processes take the real lock, append to the real metrics file and keep a step as a checkpoint would. Some pretend to
be on other machines, where an owner is judged by its heartbeat alone.
"""

import argparse
import itertools
import json
import multiprocessing as mp
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.claims import claim
from data_prep.files import write_text
from training.monitoring.records import MetricsFile, StepRecord
from training.monitoring.run_lock import LostLockError, OwnedError, RunLock, Timing
from training.monitoring.run_owner import RunOwner

TIMING = Timing(renew=0.1, lease=1.5, watch=0.3)
HOSTS = ("", "n1", "n2")  # "": this machine as it is
SAVE_EVERY, ENDLESS = 20, 10**9
SAVED = 75
REFUSED, LOST = 2, 3
ENDED_WELL = {REFUSED, SAVED, 0, -signal.SIGTERM}  # the last: before it could set its handler


def hold(run: Path, host: str, steps: int) -> None:
    """Train, as far as the lock and the files are concerned, until `steps`, a signal, or another owner."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    owner = RunOwner.this_process()
    if host:
        owner = replace(owner, host=host, boot_id=host)
    try:
        lock = RunLock.take(run, owner, TIMING)
    except OwnedError:
        sys.exit(REFUSED)
    note(run, owner, "took", now(), int(lock.path.stem.removeprefix("owner-")))
    try:
        step = saved_step(run)
        with MetricsFile.open(run / "metrics.jsonl", step, lock.confirm) as metrics:
            while step < steps and not stopping:
                began = now()
                lock.confirm()
                step += 1
                metrics.write(StepRecord(step, step, "only", 1.0, 1.0, 1.0, 1.0))
                note(run, owner, "wrote", began, step)
                if step % SAVE_EVERY == 0 or step == steps:
                    save(run, lock, step)
                time.sleep(0.01)
            save(run, lock, step)
    except LostLockError:
        sys.exit(LOST)
    finally:
        lock.release()
    sys.exit(SAVED if step < steps else 0)


def save(run: Path, lock: RunLock, step: int) -> None:
    lock.confirm()
    write_text(run / "saved", str(step))


def saved_step(run: Path) -> int:
    path = run / "saved"
    return int(path.read_text()) if path.exists() else 0


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def note(run: Path, owner: RunOwner, what: str, at: float, number: int) -> None:
    """Add a line to what all processes write down, in one piece."""
    line = json.dumps({"token": owner.token, "pid": os.getpid(), "what": what, "at": at, "number": number}) + "\n"
    descriptor = os.open(run / "audit.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def notes(run: Path, begin: int = 0) -> Iterator[dict[str, Any]]:
    """Whole lines from byte `begin` on; `end` of each is the byte after it."""
    path = run / "audit.jsonl"
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(begin)
        for line in file:
            begin += len(line)
            if line.endswith(b"\n"):
                yield json.loads(line) | {"end": begin}


@dataclass
class Bench:
    """The processes of one run."""

    run: Path
    chance: random.Random
    starts: int = 0
    took: set[int] = field(default_factory=set)  # processes that have owned the run, as far as the notes were read
    read: int = 0  # bytes

    def start(self, host: str | None = None, steps: int = ENDLESS) -> BaseProcess:
        self.starts += 1
        chosen = self.chance.choice(HOSTS) if host is None else host
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["tests.e2e.fault_locks"])
        process = context.Process(target=hold, args=(self.run, chosen, steps))
        process.start()
        return process

    def owns(self, *processes: BaseProcess) -> BaseProcess:
        """Wait until one of `processes` owns the run."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.look()
            for process in processes:
                if process.pid in self.took:
                    return process
            if all(process.exitcode is not None for process in processes):
                break
            time.sleep(0.005)
        raise AssertionError(f"nobody continues the run: exit codes {[process.exitcode for process in processes]}")

    def look(self) -> None:
        """Read what was noted since the last time."""
        for line in notes(self.run, self.read):
            self.took |= {line["pid"]} if line["what"] == "took" else set()
            self.read = line["end"]

    def step(self) -> list[str]:
        """One or two starts, something done to the owner, and what was wrong about it."""
        rivals = [self.start() for _ in range(self.chance.choice((1, 1, 2)))]
        owner = self.owns(*rivals)
        others = [process for process in rivals if process is not owner]
        time.sleep(self.chance.random() * 0.1)
        problems = self.chance.choice((self.kill, self.terminate, self.pause, self.freeze))(owner, others)
        for process in others:  # one may have followed the owner
            process.terminate()
            process.join(timeout=60)
        codes = [process.exitcode for process in others]
        return problems + ([] if set(codes) <= ENDED_WELL else [f"rivals ended with {codes}"])

    def kill(self, owner: BaseProcess, others: list[BaseProcess]) -> list[str]:
        owner.kill()
        owner.join()
        return []

    def terminate(self, owner: BaseProcess, others: list[BaseProcess]) -> list[str]:
        owner.terminate()
        owner.join(timeout=60)
        return [] if owner.exitcode in (SAVED, 0) else [f"SIGTERM: exit code {owner.exitcode}"]

    def pause(self, owner: BaseProcess, others: list[BaseProcess]) -> list[str]:
        """Stopped for less than the lease: it stays the owner, whoever starts."""
        self.signal(owner, signal.SIGSTOP)
        time.sleep(self.chance.random() * 0.3)
        self.signal(owner, signal.SIGCONT)
        late = self.start("n3")
        late.join(timeout=60)
        owner.kill()
        owner.join()
        return [] if late.exitcode == REFUSED else [f"a second start beside a living owner ended with {late.exitcode}"]

    def freeze(self, owner: BaseProcess, others: list[BaseProcess]) -> list[str]:
        """Stopped for longer: a start elsewhere takes over, and the frozen one notices when it goes on."""
        self.signal(owner, signal.SIGSTOP)
        late = self.start("n3")
        follower = self.owns(late, *others)
        time.sleep(self.chance.random() * 0.1)
        self.signal(owner, signal.SIGCONT)
        owner.join(timeout=60)
        problems = [] if owner.exitcode == LOST else [f"a frozen owner ended with {owner.exitcode}"]
        for process in (follower, late):
            process.terminate()
            process.join(timeout=60)
        if follower.exitcode not in (SAVED, 0) or late.exitcode not in ENDED_WELL:
            problems.append(f"its follower ended with {follower.exitcode}, a late start with {late.exitcode}")
        return problems

    def signal(self, process: BaseProcess, number: signal.Signals) -> None:
        assert process.pid is not None
        os.kill(process.pid, number)

    def finish(self) -> list[str]:
        """One last start trains to the end."""
        steps = saved_step(self.run) + 2 * SAVE_EVERY
        last = self.start(steps=steps)
        last.join(timeout=120)
        problems = [] if last.exitcode == 0 else [f"the last start ended with {last.exitcode}"]
        return problems + wrong_lines(self.run, steps)


def two_owners(run: Path) -> list[str]:
    """Whoever wrote after the next owner had begun."""
    lines = list(notes(run))
    took = sorted((line["number"], line["at"], line["token"]) for line in lines if line["what"] == "took")
    numbers = [number for number, _, _ in took]
    problems = [] if len(set(numbers)) == len(numbers) else ["one number was won twice"]
    for (_, _, token), (number, begun, _) in itertools.pairwise(took):
        late = [line for line in lines if line["token"] == token and line["at"] > begun]
        problems += [f"owner {number - 1} wrote {len(late)} lines beside owner {number}"] if late else []
    return problems


def wrong_lines(run: Path, steps: int) -> list[str]:
    """Steps that metrics.jsonl has not got, or has twice."""
    found = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    wrong = next((index for index, step in enumerate(found) if step != index + 1), len(found))
    return [] if wrong == len(found) == steps else [f"line {wrong + 1} of {len(found)} is wrong, of {steps} wanted"]


def locks(folder: Path, starts: int, seed: int) -> tuple[int, list[str]]:
    """Do at least `starts` starts of one run; how many there were, and what was wrong."""
    run = folder / "run"
    run.mkdir(parents=True)
    bench = Bench(run, random.Random(seed))
    problems: list[str] = []
    try:
        while bench.starts < starts - 1:
            problems += bench.step()
        problems += bench.finish()
    finally:
        for process in mp.active_children():
            process.kill()
    return bench.starts, problems + two_owners(run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=200, help="start so many processes (default 200)")
    parser.add_argument("--seed", type=int, default=20261120, help="of moments, machines and signals")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memtrain-locks-") as scratch:
        began = time.monotonic()
        starts, problems = locks(Path(scratch), options.starts, options.seed)
        print(f"{starts} starts in {time.monotonic() - began:.0f} s", *problems, sep="\n")
    claim(
        "starts and kills with one owner at a time and every line once",
        starts - len(problems),
        f"{starts}",
        not problems,
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
