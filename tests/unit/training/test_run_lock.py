"""One owner a run: who is refused, who takes over, and at most one of them."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from tests.e2e.commands import environment, tree
from tests.e2e.fault_locks import locks
from training.cluster.job_state import Job
from training.monitoring import run_owner
from training.monitoring.run_lock import LostLockError, OwnedError, RunLock, Timing, owner_of
from training.monitoring.run_owner import RunOwner, liveness_of

QUICK = Timing(renew=0.1, lease=3, watch=0.2)
SILENT = Timing(renew=60, lease=0.4, watch=0.2)  # an owner that gives no sign of life


def elsewhere(host: str = "n7", **values: object) -> RunOwner:
    """A process that pretends to be on another machine."""
    return replace(RunOwner.this_process(), host=host, boot_id=host, **values)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "it"


@pytest.fixture
def taken(run: Path) -> Iterator[RunLock]:
    lock = RunLock.take(run, timing=QUICK)
    yield lock
    lock.release()


def test_a_second_start_is_told_who_where_since_when_and_the_way_out_and_writes_nothing(
    taken: RunLock, run: Path
) -> None:
    before = tree(run)
    with pytest.raises(OwnedError) as refused:
        RunLock.take(run)
    assert tree(run) == before
    me = taken.owner
    assert f"run.name: {run} is being trained by process {os.getpid()}" in str(refused.value)
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(me.since))
    assert f"on {me.host} since {since}, last sign of life 0 s ago" in str(refused.value)
    assert f"kill -TERM {os.getpid()} on {me.host}, or choose another run.name" in str(refused.value)


def test_the_message_names_the_slurm_job(run: Path) -> None:
    owner = replace(RunOwner.this_process(), slurm_job="123_4")
    lock = RunLock.take(run, owner, QUICK)
    with pytest.raises(OwnedError, match=r", Slurm job 123_4, since .* with scancel 123_4, or"):
        RunLock.take(run)
    lock.release()


def test_a_released_lock_is_free(run: Path) -> None:
    for _ in range(3):
        RunLock.take(run).release()
        assert owner_of(run) is None
    assert [path.name for path in (run / "lock").iterdir()] == ["owner-000003.json"]


def test_a_run_that_did_not_begin_leaves_nothing(run: Path) -> None:
    run.parent.mkdir()
    RunLock.take(run).discard()
    assert list(run.parent.iterdir()) == []


TAKING = """
import sys, time
from pathlib import Path
from training.monitoring.run_lock import RunLock
RunLock.take(Path(sys.argv[1]))
print("taken", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "killed, its parent has not asked"])
def test_a_killed_owner_is_followed_at_once(reaped: bool, run: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", TAKING, run], env=environment(), stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "taken\n"
    child.send_signal(signal.SIGSTOP)
    with pytest.raises(OwnedError):  # stopped is not dead
        RunLock.take(run)
    child.kill()
    if reaped:
        child.wait()
    else:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    began = time.monotonic()
    RunLock.take(run).release()
    assert time.monotonic() - began < 5
    child.wait()


def test_another_process_with_the_same_number_is_not_the_owner(run: Path) -> None:
    me = RunOwner.this_process()
    assert liveness_of(me, me) == "alive"
    assert liveness_of(replace(me, process_start=me.process_start - 1), me) == "dead"


def test_numbers_of_another_container_say_nothing() -> None:
    me = RunOwner.this_process()
    assert liveness_of(replace(me, pid_namespace="pid:[1]", pid=2**22), me) == "unknown"
    assert liveness_of(replace(me, boot_id="", pid=2**22), me) == "unknown"


def test_an_owner_elsewhere_is_refused_while_it_gives_signs_of_life(run: Path) -> None:
    lock = RunLock.take(run, elsewhere(), QUICK)
    began = time.monotonic()
    with pytest.raises(OwnedError, match="on n7"):
        RunLock.take(run, timing=QUICK)
    assert time.monotonic() - began < QUICK.lease
    lock.release()


def test_an_owner_elsewhere_that_falls_silent_is_followed_after_the_lease_and_notices(run: Path) -> None:
    silent = RunLock.take(run, elsewhere(), SILENT)
    said: list[str] = []
    began = time.monotonic()
    follower = RunLock.take(run, timing=replace(SILENT, renew=0.1), say=said.append)
    assert SILENT.watch < time.monotonic() - began < 10
    assert len(said) == 1 and "was last trained by" in said[0] and "on n7" in said[0]
    with pytest.raises(LostLockError, match=rf"taken over by process {os.getpid()}"):
        silent.confirm()
    assert silent.lost
    silent.release()
    assert owner_of(run) == follower.owner  # what it gave back was not its own any more
    follower.confirm()
    follower.release()


def test_an_owner_elsewhere_that_ends_while_it_is_watched_is_followed(run: Path) -> None:
    lock = RunLock.take(run, elsewhere(), SILENT)
    threading.Timer(0.2, lock.release).start()
    began = time.monotonic()
    follower = RunLock.take(run, timing=Timing(renew=60, lease=100))
    assert time.monotonic() - began < 50  # it did not wait for the lease to end
    assert owner_of(run) == follower.owner
    follower.release()


def test_clocks_of_machines_do_not_matter(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = RunLock.take(run, elsewhere(), QUICK)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(OwnedError):
        RunLock.take(run, timing=QUICK)
    lock.release()


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ({"slurm_job": "5", "slurm_restart": 1}, {"slurm_job": "5", "slurm_restart": 0}, "dead"),  # requeued
        ({"slurm_job": "5", "slurm_restart": 1}, {"slurm_job": "5", "slurm_restart": 1}, "unknown"),  # two steps
        ({"slurm_job": "6"}, {"slurm_job": ""}, "unknown"),
    ],
)
def test_a_start_of_the_same_slurm_job_follows_its_predecessor(
    mine: dict[str, object], theirs: dict[str, object], expected: str
) -> None:
    assert liveness_of(elsewhere(**theirs), replace(RunOwner.this_process(), **mine)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        *((state, "dead") for state in ("COMPLETED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "PENDING")),
        *((state, "unknown") for state in ("RUNNING", "COMPLETING", "UNKNOWN")),
        ("SUSPENDED", "alive"),
        (None, "unknown"),
    ],
)
def test_slurm_tells_whether_an_owner_in_another_job_can_live(
    state: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_owner, "job_state", lambda job: state and Job(job, state))
    assert liveness_of(elsewhere(slurm_job="5"), RunOwner.this_process()) == expected


def test_a_job_of_another_cluster_is_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_owner, "job_state", lambda job: Job(job, "COMPLETED"))
    mine = replace(RunOwner.this_process(), slurm_cluster="a")
    assert liveness_of(elsewhere(slurm_job="5", slurm_cluster="b"), mine) == "unknown"
    assert liveness_of(elsewhere(slurm_job="5", slurm_cluster="a"), mine) == "dead"


def at_once(calls: list[Callable[[], RunLock]]) -> tuple[list[RunLock], list[OwnedError]]:
    """Those who took the lock and those who were refused, all at the same time."""
    barrier, won, refused = threading.Barrier(len(calls)), [], []

    def take(call: Callable[[], RunLock]) -> None:
        barrier.wait()
        try:
            won.append(call())
        except OwnedError as error:
            refused.append(error)

    threads = [threading.Thread(target=take, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won, refused


@pytest.mark.parametrize("before", ["nobody", "a released one", "a dead one here", "a silent one elsewhere"])
def test_of_many_at_most_one_takes_over(before: str, run: Path) -> None:
    if before == "a released one":
        RunLock.take(run).release()
    elif before == "a dead one here":
        RunLock.take(run, replace(RunOwner.this_process(), pid=2**22 + 1))
    elif before == "a silent one elsewhere":
        RunLock.take(run, elsewhere("n0"), SILENT)
    hosts = [f"n{number}" for number in range(1, 7)]
    calls = [lambda host=host: RunLock.take(run, elsewhere(host), replace(QUICK, lease=1.2)) for host in hosts]
    won, refused = at_once(calls)  # type: ignore[arg-type]
    assert (len(won), len(refused)) == (1, 5)
    won[0].confirm()
    won[0].release()


def test_a_file_system_without_hard_links(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> NoReturn:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", none)
    won, refused = at_once([lambda: RunLock.take(run, timing=QUICK)] * 4)
    assert (len(won), len(refused)) == (1, 3)
    assert owner_of(run) == won[0].owner
    won[0].release()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": "x"}', json.dumps({"pid": 3, "new": 1})])
def test_a_damaged_lock_is_followed_after_the_lease(text: str, run: Path) -> None:
    (run / "lock").mkdir(parents=True)
    (run / "lock" / "owner-000004.json").write_text(text)
    RunLock.take(run, timing=QUICK).release()
    assert [path.name for path in (run / "lock").iterdir()] == ["owner-000005.json"]


def test_a_lock_that_somebody_deleted_ends_its_owner(run: Path) -> None:
    lock = RunLock.take(run, timing=QUICK)
    lock.path.unlink()
    time.sleep(0.5)
    with pytest.raises(LostLockError, match="its lock was deleted"):
        lock.confirm()
    lock.release()
    assert not list((run / "lock").iterdir())


def test_what_killed_starts_left_is_cleared(run: Path) -> None:
    (run / "lock").mkdir(parents=True)
    old = run / "lock" / ".candidate-1"
    old.touch()
    os.utime(old, (1, 1))
    RunLock.take(run).release()
    assert not old.exists()


def test_random_starts_and_kills_leave_one_owner_and_every_line_once(tmp_path: Path) -> None:
    """`make faults` does 200."""
    _, problems = locks(tmp_path, 20, seed=7)
    assert problems == []
