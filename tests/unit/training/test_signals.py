"""What signals do to a process that trains, and what it says of its end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.commands import ROOT, environment
from training.errors import ConfigError
from training.faults.signals import HANDLED, StopSignal
from training.tracking.facts import END_FILE, End, read_end, write_end


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_is_noted_and_the_handlers_come_back(number: signal.Signals) -> None:
    original = signal.signal(number, signal.SIG_DFL)  # the tests themselves may run below nohup
    try:
        with StopSignal() as stop:
            assert not stop
            os.kill(os.getpid(), number)
            assert stop
            assert (stop.name, stop.number) == (number.name, number)
        assert signal.getsignal(number) is signal.SIG_DFL
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(number, original)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_nohup_and_a_shell_ignore_stays_ignored(number: signal.Signals) -> None:
    original = signal.signal(number, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), number)
            assert not stop
    finally:
        signal.signal(number, original)


def test_the_first_of_several_is_the_reason() -> None:
    with StopSignal() as stop:
        for number in (signal.SIGUSR2, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.name == "SIGUSR2"


WAITING = """
import signal, sys, time
from pathlib import Path
from training.faults.signals import StopSignal
signal.signal(signal.SIGINT, signal.default_int_handler)
with StopSignal(speaks=True) as stop:
    stop.at_once = lambda: Path(sys.argv[1]).write_text("ended")
    print("ready", flush=True)
    WAIT
print("on", stop.name, flush=True)
"""
PYTHON_SLEEPS = "end = time.monotonic() + 4\n    while time.monotonic() < end: time.sleep(0.01)"
# as a rank in a collective: the call goes on after a signal, so that no handler of Python runs
IN_C = """import ctypes
    libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_init(lock, None)
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)"""


@pytest.mark.parametrize("how", ["in Python", "in C"])
def test_a_second_interrupt_ends_at_once_and_a_hasty_repetition_does_not(how: str, tmp_path: Path) -> None:
    wait = PYTHON_SLEEPS if how == "in Python" else IN_C
    code = WAITING.replace("WAIT", wait)
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "end")],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for pause in (0.05, 1.0):  # a launcher passes on what the terminal has sent already
        child.send_signal(signal.SIGINT)
        time.sleep(pause)
    assert child.poll() is None
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert time.monotonic() - began < 1.5
    assert (tmp_path / "end").read_text() == "ended"
    assert err.count("SIGINT: the run is saved at the end of this step") == 1
    assert "a second Ctrl-C ends it at once" in err


def test_an_interrupt_and_a_termination_save_once() -> None:
    """As under deepspeed's launcher, which sends SIGTERM once it was interrupted."""
    code = WAITING.replace("WAIT", "sys.stdin.read()")
    child = subprocess.Popen(
        [sys.executable, "-c", code, "unused"],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    time.sleep(0.8)
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=30)
    assert (child.returncode, out) == (0, "on SIGINT\n")


@pytest.mark.parametrize(("error", "code"), [(RuntimeError("no\nway"), 1), (ConfigError("bad"), 2)])
def test_the_end_by_an_error_is_written_in_one_line(error: Exception, code: int, tmp_path: Path) -> None:
    write_end(tmp_path, End.of(error, 7))
    raw = json.loads((tmp_path / END_FILE).read_text())
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    assert (raw["status"], raw["exit_code"], raw["exception"], raw["signal"]) == ("FAILED", code, text, "")
    assert read_end(tmp_path) == ("FAILED", f"failed after step 7: {text}")


def test_who_ends_because_of_another_does_not_hide_why(tmp_path: Path) -> None:
    write_end(tmp_path, End.of(MemoryError("full"), None))
    write_end(tmp_path, End.of(RuntimeError("lost another rank"), 3), first=True)
    assert read_end(tmp_path)[1] == "failed at its start: MemoryError: full"
    write_end(tmp_path, End("KILLED", "stopped", 75, signal="SIGTERM"))
    assert json.loads((tmp_path / END_FILE).read_text())["signal"] == "SIGTERM"


def test_a_password_in_an_error_is_not_written(tmp_path: Path) -> None:
    write_end(tmp_path, End.of(RuntimeError("https://me:hidden@host/x"), 1))
    assert "hidden" not in (tmp_path / END_FILE).read_text()


PRINTING = """
import os, sys
from training.monitoring.console import Console
console = Console(10, 100)
for number in range(200):
    console.note("a line " * 100)
console.close()
sys.exit(75)
"""


def test_output_that_nobody_reads_any_more_does_not_end_the_run() -> None:
    """As `pretrain.py | head`: the exit code is the run's."""
    child = subprocess.Popen([sys.executable, "-c", PRINTING], env=environment(), stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None
    child.stdout.close()
    assert child.wait(timeout=60) == 75


def test_a_terminal_that_was_closed_does_not_end_the_run() -> None:
    leader, follower = os.openpty()
    code = PRINTING.replace("for number", "import time; sys.stdin.read()\nfor number")
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=follower, stderr=follower, cwd=ROOT,
        env=environment({"TERM": "xterm"}),
    )  # fmt: skip
    os.close(follower)
    os.close(leader)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(timeout=60) == 75
