"""Every fault a long run meets, put into real runs of two ranks and more, and what came of it.

    make faults                                     all of it
    python -m tests.e2e.faults --kills 10 --damage 20 --only kills --seed 1

Ends with a JSON line a claim; the exit code is 1 when one does not hold.
"""

import argparse
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.claims import claim
from tests.e2e.attempts import LENGTH, SAMPLES, Attempt, Site, attempt, difference, steps_so_far, through
from tests.e2e.commands import losses, reproducible, steps_of
from tests.e2e.damage import flip, lose, remove, truncate
from tests.e2e.fault_locks import locks
from tests.e2e.injected import FullDisk, Hang, NoRoom, OutOfMemory, Scaled, ShortFiles, Slow, SlowDisk
from training.checkpoint.manifest import latest_checkpoint, step_of

SHORT = 24  # steps of the runs that are not killed
HANG_SECONDS = 10


@dataclass
class Bench:
    """Where the scenarios run, and what chance and people are asked."""

    folder: Path
    data: Path
    chance: random.Random
    console: Console

    def site(self, name: str, steps: int) -> Site:
        return Site.make(self.folder / name, self.data, steps)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)


def check(claims: list[bool], name: str, value: float, goal: str, met: bool) -> None:
    claims.append(met)
    claim(name, value, goal, met)


def same_as(found: Path, reference: Path) -> str:
    """How a run differs from an uninterrupted one: weights and moments by the bit, every step once."""
    steps = [line["step"] for line in steps_of(found)]
    if steps != list(range(1, len(steps) + 1)):
        return f"steps {steps}"
    tokens = [line["tokens"] for line in steps_of(found)]
    if tokens != [step * LENGTH * SAMPLES for step in steps]:
        return f"tokens {tokens}"
    if reproducible(found) != reproducible(reference):
        return "metrics.jsonl differs"
    return difference(found, reference)


# -- kill -9 ---------------------------------------------------------------------------------------------------------


def kills(bench: Bench, count: int, claims: list[bool]) -> None:
    """-9 to a random rank: while it starts, between steps, while it writes a checkpoint."""
    site = bench.site("kills", steps := max(SHORT, 6 * count))
    through(site, "reference")
    done, wrong, writing, started = 0, 0, 0, time.monotonic()
    while done < count and steps_so_far(site.run("killed")) < steps:
        where = bench.chance.choice(("start", "step", "step", "writing", "writing"))
        before = saved_step(site.run("killed"))
        with attempt(site, "killed", f"training.stop_after_steps={steps - 1}") as running:
            victim = kill_somewhere(bench, running, where)
            if all(code == 0 or code == 75 for code in running.follow()):
                break  # it came to its end before its time
        done += 1
        writing += where == "writing"
        resumed = re.search(r"resuming after step (\d+)", running.text())
        continued = resumed is None if not before else resumed is None or int(resumed[1]) >= before
        wrong += not continued
        bench.say(f"kill {done}/{count}: rank {victim}, {where}, step {steps_so_far(site.run('killed'))}")
    last = through(site, "killed")
    ended_well = set(last.codes) == {0}
    what = same_as(site.run("killed"), site.run("reference")) if ended_well else last.text()[-2000:]
    bench.say(
        f"{done} kills in {time.monotonic() - started:.0f} s, {writing} of them during a checkpoint; {what or 'same'}"
    )
    check(claims, "kills survived", done - wrong, f"{count}", done == count and not wrong)
    check(claims, "weights, moments and tokens as if never killed", float(not what), "1", not what)


def saved_step(run_folder: Path) -> int:
    latest = latest_checkpoint(run_folder / "checkpoints")
    return step_of(latest) if latest else 0


def kill_somewhere(bench: Bench, running: Attempt, where: str) -> int:
    """Wait for a moment that chance chose, then kill a rank that chance chose."""
    first, saved = steps_so_far(running.run_folder), saved_step(running.run_folder)
    ahead, delay = bench.chance.randint(1, 9), bench.chance.random()

    def reached() -> bool:
        now = steps_so_far(running.run_folder)
        if where == "start":  # which is over with the first step, however fast the machine
            return time.monotonic() - began > 3 * delay or now != first
        if where == "writing":
            return bool(list((running.run_folder / "checkpoints").glob(".step-*.partial")))
        return now != first and now >= saved + ahead

    began = time.monotonic()
    while not reached() and not running.over and time.monotonic() - began < 90:
        time.sleep(0.0005)
    time.sleep(0.03 * delay if where != "start" else 0)
    victim = bench.chance.randint(0, 1)
    running.signal(victim, signal.SIGKILL)
    return victim


# -- damage on disk --------------------------------------------------------------------------------------------------


def damage(bench: Bench, count: int, claims: list[bool]) -> None:
    """A stopped run's last checkpoint damaged: found, said, and continued from the one before."""
    site = bench.site("damage", SHORT)
    through(site, "reference")
    through(site, "whole", "training.stop_after_steps=8")
    detected = recovered = 0
    for number in range(count):
        folder = site.run("damaged")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(site.run("whole"), folder)
        how = (flip, truncate, remove, lose)[number % 4](bench.chance, folder / "checkpoints" / "step-00000008")
        started = through(site, "damaged", "training.stop_after_steps=9")
        text = started.text()
        detected += "damaged: " in text and "falling back to" in text
        expected = {step: loss for step, loss in losses(site.run("reference")).items() if step <= 9}
        good = "resuming after step 4" in text and losses(folder) == expected and set(started.codes) == {75}
        recovered += good
        bench.say(f"damage {number + 1}/{count}: {how}: {'recovered' if good else text[-1500:]}")
    check(claims, "damaged checkpoints detected", detected, f"{count}", detected == count)
    check(claims, "damaged checkpoints recovered from the one before", recovered, f"{count}", recovered == count)


# -- signals ---------------------------------------------------------------------------------------------------------


def signals(bench: Bench, claims: list[bool]) -> None:
    """SIGTERM and SIGUSR2 to one rank: all save together, 75, and the resumed run is the same by the bit."""
    site = bench.site("signals", SHORT)
    through(site, "reference")
    for number in (signal.SIGTERM, signal.SIGUSR2):
        name, step, rank = number.name.lower(), bench.chance.randint(1, SHORT // 2), bench.chance.randint(0, 1)
        with attempt(site, name) as running:
            while steps_so_far(running.run_folder) < step and not running.over:
                time.sleep(0.001)
            running.signal(rank, number)
            codes = running.follow()
        stopped = steps_so_far(running.run_folder)
        again = through(site, name)
        what = "" if codes == [75, 75] else f"codes {codes}: {running.text()[-1500:]}"
        what = what or ("" if again.codes == [0, 0] else again.text()[-1500:])
        what = what or same_as(site.run(name), site.run("reference"))
        bench.say(f"{number.name} to rank {rank}: stopped after step {stopped}, codes {codes}; {what or 'same'}")
        check(claims, f"{number.name}'d and resumed equals uninterrupted", float(not what), "1", not what)


# -- other topologies ------------------------------------------------------------------------------------------------

SHAPES: list[tuple[int, tuple[str, ...]]] = [
    (4, ("parallel.tensor=2", "parallel.pipeline=2")),
    (2, ("training.zero_stage=2",)),
    (1, ()),
    (4, ("parallel.pipeline=2",)),
    (2, ("training.zero_stage=3",)),
]


def reshard(bench: Bench, claims: list[bool]) -> None:
    """4 ranks (tensor 2, pipeline 2) -> 2 (data 2) -> 1 -> 4 (pipeline 2, data 2) -> 2 (ZeRO 3): one run.

    At a low learning rate: AdamW divides gradients that are all rounding by their own size, so at 3e-3 another order
    of summation alone moves losses by 1e-4.  The control is one rank with other micro-batches.
    """
    site = bench.site("reshard", SHORT)
    low = ("phases.0.lr.peak=1e-4", "phases.1.lr.peak=1e-4")
    through(site, "reference", *low, ranks=1)
    through(site, "control", *low, "training.micro_batch_size=8", ranks=1)
    for index, (ranks, overrides) in enumerate(SHAPES):
        stop = SHORT if index == len(SHAPES) - 1 else (index + 1) * SHORT // len(SHAPES)
        started = through(site, "moved", *low, *overrides, f"training.stop_after_steps={stop}", ranks=ranks)
        if not set(started.codes) <= {0, 75}:
            bench.say(started.text()[-3000:])
            check(claims, f"resumed on {ranks} ranks {' '.join(overrides)}", 0.0, "1", False)
            return
    other = losses(site.run("reference"))
    largest, control = (
        max(abs(own[step] - other[step]) for step in other)
        for own in (losses(site.run("moved")), losses(site.run("control")))
    )
    bench.say(f"largest difference of a loss over {len(SHAPES)} topologies: {largest:.1e}; control {control:.1e}")
    check(claims, "losses across topologies, largest difference x 1e5", largest * 1e5, "<= 1", largest <= 1e-5)


# -- losses that are wrong -------------------------------------------------------------------------------------------


def bad_losses(bench: Bench, claims: list[bool]) -> None:
    """Not a number: left out, then too often. A spike: back to the checkpoint and past the batch."""
    site = bench.site("losses", SHORT)
    once = through(site, "once", fault=Scaled(1, 6, 6))
    line = next(line for line in steps_of(site.run("once")) if line["step"] == 6)
    ok = once.codes == [0, 0] and "the update of this step is left out" in once.text() and line["loss"] is None
    ok = ok and all(line["loss"] for line in steps_of(site.run("once")) if line["step"] != 6)
    check(claims, "one step that is not finite is left out", float(ok), "1", ok)

    often = through(site, "often", fault=Scaled(1, 6, 99))
    samples = range(8 * SAMPLES + SAMPLES // 2, 9 * SAMPLES)  # rank 1's half of step 9
    named = f"rank 1: samples {samples[0]}..{samples[1]}, {samples[2]}..{samples[3]}" in often.text()
    ok = set(often.codes) == {1} and "step 9 (warmup)" in often.text() and named and saved_step(site.run("often")) == 8
    bench.say(next((line for line in often.text().splitlines() if line.startswith("error: ")), often.text()[-1500:]))
    check(claims, "too many are an error that names rank and samples", float(ok), "1", ok)

    spiked = through(site, "spiked", "faults.spike_factor=3", fault=Scaled(-1, 11, 11, 50.0))
    steps = [line["step"] for line in steps_of(site.run("spiked"))]
    ok = (
        spiked.codes == [0, 0] and "back to step 8" in spiked.text() and steps == [*range(1, 11), *range(12, SHORT + 1)]
    )
    bench.say(next((line for line in spiked.text().splitlines() if "spiked" in line), spiked.text()[-1500:]))
    check(claims, "a spike sends back to the checkpoint and past its batch", float(ok), "1", ok)


# -- ranks and machines that fail ------------------------------------------------------------------------------------


def hangs(bench: Bench, claims: list[bool]) -> None:
    """One rank waits for ever; or is stopped altogether."""
    site = bench.site("hangs", SHORT)
    step, rank = bench.chance.randint(3, 20), bench.chance.randint(0, 1)
    limit = f"faults.hang_seconds={HANG_SECONDS}"
    with attempt(site, "hanging", limit, fault=Hang(rank, step, step)) as running:
        codes = running.follow(300)
    text = running.text()
    where = f"rank {rank}, step {step}, phase {'warmup' if step <= SHORT // 2 else 'memory'}, step, at "
    stacks = site.run("hanging") / "log" / f"stacks-rank-{rank}.txt"
    kept = stacks.exists() and "wait_for_ever" in stacks.read_text(encoding="utf-8")
    seconds = re.search(rf"no progress for {HANG_SECONDS} s", text) is not None
    bench.say(next((line for line in text.splitlines() if line.startswith("error: ")), text[-1500:]))
    ok = set(codes) == {1} and where in text and "injected.py" in text and kept and seconds
    check(claims, "a hanging rank is named with step, phase and stack, and the job ends", float(ok), "1", ok)

    with attempt(site, "frozen", limit) as running:
        while steps_so_far(running.run_folder) < 3 and not running.over:
            time.sleep(0.001)
        running.signal(rank, signal.SIGSTOP)
        codes = running.follow(300)
    named = re.search(rf"Hanging: rank {rank}, .* giving no sign of life", running.text()) is not None
    text = running.text()
    bench.say(next((line for line in text.splitlines() if line.startswith("error: ")), text[-1500:]))
    check(claims, "a frozen rank is named by the others, and the job ends", float(named), "1", named)


def machines(bench: Bench, claims: list[bool]) -> None:
    """A full disk, a full memory, a rank that dies: said clearly, the last good checkpoint stays."""
    site = bench.site("machines", SHORT)
    full = through(site, "full", fault=FullDisk(2))
    ok = set(full.codes) == {1} and "step-00000008 is the last whole one" in full.text()
    ok = ok and "are free on its disk" in full.text() and saved_step(site.run("full")) == 8
    bench.say(next((line for line in full.text().splitlines() if line.startswith("error: ")), full.text()[-1500:]))
    again = through(site, "full")
    ok = ok and again.codes == [0, 0] and "resuming after step 8" in again.text()
    check(claims, "a full disk is said, and the last good checkpoint stays", float(ok), "1", ok)

    through(site, "filled", "training.stop_after_steps=8")
    filled = through(site, "filled", fault=ShortFiles(100_000))
    ok = set(filled.codes) == {1} and "step 12 could not be written" in filled.text()
    ok = ok and "step-00000008 is the last whole one" in filled.text() and saved_step(site.run("filled")) == 8
    bench.say(next((line for line in filled.text().splitlines() if line.startswith("error: ")), filled.text()[-1500:]))
    check(claims, "a disk that fills up while a checkpoint is written leaves the last good one", float(ok), "1", ok)

    room = through(site, "room", fault=NoRoom(0, 6, 6))
    ok = set(room.codes) == {1} and saved_step(site.run("room")) == 4 and "Traceback" not in room.text()
    ok = (
        ok
        and "error: rank 0: no space left on the disk of" in room.text()
        and "run the same command again" in room.text()
    )
    check(claims, "a disk without room for a line of metrics is said", float(ok), "1", ok)

    memory = through(site, "memory", fault=SlowDisk(1.0, OutOfMemory(1, 5, 5)))
    ok = set(memory.codes) == {1} and "rank 1: out of memory" in memory.text() and "optimizer state" in memory.text()
    check(claims, "a full memory is explained by the rank that had it", float(ok), "1", ok)
    ok = saved_step(site.run("memory")) == 4
    check(claims, "a checkpoint that is being written when a rank fails is finished", float(ok), "1", ok)

    slow = through(bench.site("pace", 2 * SHORT), "slow", fault=Slow(1, 0.3))
    ok = slow.codes == [0, 0] and re.search(r"rank 1 on \S+ takes [\d.]+ x the others' time", slow.text()) is not None
    check(claims, "a slow rank is named", float(ok), "1", ok)

    with attempt(site, "dead") as running:
        while steps_so_far(running.run_folder) < 5 and not running.over:
            time.sleep(0.001)
        running.signal(1, signal.SIGKILL)
        began = time.monotonic()
        codes = running.follow()
    ok = codes == [1, -signal.SIGKILL] and "lost another rank" in running.text()
    bench.say(f"the other rank ended {time.monotonic() - began:.1f} s after the kill, codes {codes}")
    check(claims, "a rank that dies ends the others", float(ok), "1", ok)


def lock_starts(bench: Bench, count: int, claims: list[bool]) -> None:
    """Random starts and kills of processes that own one run by turns."""
    starts, problems = locks(bench.folder / "locks", count, bench.chance.randrange(2**31))
    bench.say("\n".join([f"{starts} starts", *problems]))
    check(claims, "starts with one owner at a time and every line once", float(not problems), "1", not problems)


def prepared(folder: Path) -> Path:
    """Tokens to train on: a little of Python's standard library."""
    from data_prep import PrepareConfig, SourceConfig, TokenizerConfig, prepare

    settings = PrepareConfig(
        sources=[SourceConfig(kind="python-stdlib")],
        tokenizer=TokenizerConfig(vocab_size=512, train_bytes=100_000),
        max_bytes=400_000,
        valid_fraction=0.2,
        workers=1,
    )
    prepare(settings, folder, Console(quiet=True))
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kill -9 so often (default 50)")
    parser.add_argument("--damage", type=int, default=20, help="damage so many checkpoints (default 20)")
    parser.add_argument("--starts", type=int, default=200, help="start so many owners of one run (default 200)")
    parser.add_argument("--only", default="", help="one of: kills damage signals reshard losses hangs machines locks")
    parser.add_argument("--seed", type=int, default=20261120, help="of the moments, ranks and bits")
    options = parser.parse_args()
    claims: list[bool] = []
    scenarios: dict[str, Callable[[Bench], None]] = {
        "kills": lambda bench: kills(bench, options.kills, claims),
        "damage": lambda bench: damage(bench, options.damage, claims),
        "signals": lambda bench: signals(bench, claims),
        "reshard": lambda bench: reshard(bench, claims),
        "losses": lambda bench: bad_losses(bench, claims),
        "hangs": lambda bench: hangs(bench, claims),
        "machines": lambda bench: machines(bench, claims),
        "locks": lambda bench: lock_starts(bench, options.starts, claims),
    }
    if options.only and options.only not in scenarios:
        parser.error(f"--only: {options.only} is none of {' '.join(scenarios)}")
    with tempfile.TemporaryDirectory(prefix="memtrain-faults-") as scratch:
        folder = Path(scratch)
        console = Console(soft_wrap=True)
        for name in [options.only] if options.only else scenarios:
            console.rule(name)
            data = folder / "data"
            bench = Bench(folder, data if data.exists() else prepared(data), random.Random(options.seed), console)
            scenarios[name](bench)
    return 0 if all(claims) else 1


if __name__ == "__main__":
    sys.exit(main())
