"""Where ranks meet, and what is said of those that do not come."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.distributed.spawn import free_port
from tests.e2e.commands import environment
from training.distributed import meeting
from training.distributed.meeting import meet
from training.distributed.ranks import RankInfo
from training.errors import ConfigError, RankError, TrainingError


def in_threads(*calls: Callable[[], object]) -> list[object]:
    """What each call returned or raised."""
    found: list[object] = [None] * len(calls)

    def record(number: int, call: Callable[[], object]) -> None:
        try:
            found[number] = call()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=record, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def rank(number: int, world: int, port: int) -> RankInfo:
    return RankInfo(number, world, number, "127.0.0.1", port)


def test_ranks_meet_in_any_order() -> None:
    port = free_port()

    def first_late() -> object:
        time.sleep(0.3)
        return meet(rank(0, 3, port), 30)

    stores = in_threads(lambda: meet(rank(1, 3, port), 30), first_late, lambda: meet(rank(2, 3, port), 30))
    stores[0].set("key", "value")  # type: ignore[attr-defined]
    assert [store.get("key") for store in stores] == [b"value"] * 3  # type: ignore[attr-defined]


def test_a_port_in_use_is_said_plainly() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"MASTER_PORT: {port} is in use on .*--master_port N"):
            meet(rank(0, 2, port), 20)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "FIRST_WORD", 0.2)


def test_rank_0_names_the_missing_ranks_with_place_and_time_and_growing_pauses(
    soon: None, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    found = in_threads(lambda: meet(rank(0, 4, port), 2), lambda: meet(rank(2, 4, port), 2))
    said = capsys.readouterr().err.splitlines()
    place = (
        rf"rank 0 on \S+ waits at 127\.0\.0\.1:{port} for 2 of 4 ranks: 1, 3, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    )
    assert 2 <= len(said) <= 4  # after 0.2, 0.6 and 1.4 s
    assert all(re.match(place, line) for line in said)
    assert all(isinstance(error, TrainingError) for error in found)
    assert f"cannot meet the others at 127.0.0.1:{port}; it waited for 2 of 4 ranks: 1, 3, since" in str(found[0])
    assert "unset RANK and WORLD_SIZE" in str(found[0])


def test_a_rank_without_rank_0_says_where_it_looks_for_it(soon: None, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    with pytest.raises(
        RankError, match=rf"rank 1 on .* cannot meet the others at 127.0.0.1:{port}; it waited for rank 0"
    ):
        meet(rank(1, 2, port), 1)
    said = capsys.readouterr().err
    assert f"waits at 127.0.0.1:{port} for rank 0, which does not answer (Connection refused), since" in said


def test_a_name_that_nobody_knows_is_waited_for_and_said() -> None:
    with pytest.raises(RankError, match=r"cannot meet the others at no\.such\.host\.invalid:29500"):
        meet(RankInfo(1, 2, 0, "no.such.host.invalid"), 0.5)


def test_an_address_that_is_not_this_machines_is_said() -> None:
    with pytest.raises((RankError, TrainingError), match="rank 0 on"):
        meet(RankInfo(0, 2, 0, "no.such.host.invalid", free_port()), 1)


def test_two_processes_that_are_one_rank_are_told_apart(soon: None) -> None:
    port = free_port()
    one, *others = in_threads(lambda: meet(rank(0, 3, port), 2), *[lambda: meet(rank(1, 3, port), 2)] * 2)
    assert isinstance(one, TrainingError)
    assert sum(isinstance(error, ConfigError) and "is this rank already" in str(error) for error in others) == 1


def test_a_rank_0_that_ends_ends_the_others() -> None:
    port = free_port()
    code = (
        "from training.distributed.meeting import meet\nfrom training.distributed.ranks import RankInfo\n"
        f"print('up', flush=True)\nmeet(RankInfo(0, 3, 0, '127.0.0.1', {port}), 60)"
    )
    first = subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True)
    threading.Timer(12, first.kill).start()
    began = time.monotonic()
    with pytest.raises(TrainingError, match="until rank 0 ended"):
        meet(rank(1, 3, port), 100)
    assert time.monotonic() - began < 60
    first.wait()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also in a shell's background job, which begins with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_one_interrupt_ends_the_wait() -> None:
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        meet(rank(0, 2, free_port()), 30)
    assert time.monotonic() - began < 10
