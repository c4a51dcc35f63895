"""How real runs begin and end: two starts of one run, signals, and what ended.json says."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.attempts import Attempt, Site, attempt, steps_so_far, through
from tests.e2e.commands import losses, wait_until
from tests.e2e.injected import OutOfMemory

pytestmark = pytest.mark.timeout(600)
STEPS = 400  # more than a run gets done before it is stopped


@pytest.fixture
def site(tmp_path: Path, prepared_data: Path) -> Site:
    return Site.make(tmp_path, prepared_data, STEPS, every=50)


def ended(run: Path) -> dict[str, Any]:
    return json.loads((run / "ended.json").read_text())  # type: ignore[no-any-return]


def trains(running: Attempt, step: int = 2) -> None:
    """Wait until it has done some steps."""
    wait_until(lambda: running.over or steps_so_far(running.run_folder) >= step, 240, "the first steps")
    assert not running.over, running.text()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_start_of_a_living_run_is_refused_and_the_first_goes_on(site: Site, ranks: int) -> None:
    with attempt(site, "it", ranks=ranks) as first:
        trains(first)
        second = through(site, "it", ranks=ranks, output="second")
        assert set(second.codes) == {2}, second.text()
        assert second.text().count("is being trained by process") == 1
        assert f"process {first.pid(0)}" in second.text()
        assert "choose another run.name" in second.text()
        first.signal(0, signal.SIGTERM)
        assert set(first.follow()) == {75}
    steps = losses(site.run("it"))
    assert list(steps) == list(range(1, len(steps) + 1))  # no line lost, none doubled
    again = through(site, "it", f"training.stop_after_steps={len(steps) + 1}", ranks=ranks)
    assert set(again.codes) == {75} and f"resuming after step {len(steps)}" in again.text()


def test_two_starts_at_the_same_time_are_one_run(site: Site) -> None:
    """As `mpirun -n 2` of a program that does not know mpirun, or two shells."""
    stop = "training.stop_after_steps=5"
    with attempt(site, "it", stop, ranks=1, output="a") as a, attempt(site, "it", stop, ranks=1, output="b") as b:
        codes = sorted([*a.follow(), *b.follow()])
    # the slower one is refused, or continues a run that has stopped by then
    assert codes in ([2, 75], [75, 75]), a.text() + b.text()
    assert list(losses(site.run("it"))) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_one_signal_saves_and_says_so(site: Site, number: signal.Signals) -> None:
    with attempt(site, "it") as running:
        trains(running)
        running.signal(1, number)
        assert running.follow() == [75, 75], running.text()
    end = ended(site.run("it"))
    assert (end["signal"], end["exit_code"], end["exception"]) == (number.name, 75, "")
    stopped = steps_so_far(site.run("it"))
    assert f"after step {stopped} of {STEPS} by {number.name}, saved" in end["state"]
    assert (site.run("it") / "checkpoints" / "latest").read_text().strip() == f"step-{stopped:08d}"


def test_a_second_interrupt_ends_at_once(site: Site) -> None:
    """Rank 1 is stopped, so that rank 0 waits in a collective and no step comes to its end."""
    with attempt(site, "it") as running:
        trains(running)
        running.signal(1, signal.SIGSTOP)
        time.sleep(1)
        for _ in range(2):
            running.signal(0, signal.SIGINT)
            time.sleep(1)
        running.processes[0].join(timeout=10)
        assert running.processes[0].exitcode == 130, running.text()
        end = ended(site.run("it"))
        assert (end["signal"], end["exit_code"], end["status"]) == ("SIGINT", 130, "KILLED")
        os.kill(running.pid(1), signal.SIGKILL)
    again = through(site, "it", "training.stop_after_steps=3")
    assert set(again.codes) == {75}, again.text()


def test_the_end_by_an_error_of_any_rank_is_said(site: Site) -> None:
    failed = through(site, "it", fault=OutOfMemory(1, 3, 3))
    assert set(failed.codes) == {1}
    end = ended(site.run("it"))
    assert (end["status"], end["exit_code"]) == ("FAILED", 1)
    assert "can't allocate memory" in end["exception"], end  # rank 1's, not that rank 0 lost it


def test_a_rank_0_that_was_killed_is_said_by_the_others(site: Site) -> None:
    with attempt(site, "it") as running:
        trains(running)
        running.signal(0, signal.SIGKILL)
        assert running.follow()[1] == 1
    assert ended(site.run("it"))["status"] == "FAILED"
    again = through(site, "it", "training.stop_after_steps=3")
    assert set(again.codes) == {75}, again.text()
    assert ended(site.run("it"))["exit_code"] == 75
