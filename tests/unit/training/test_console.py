"""What a person sees: exact lines in a log file, whole lines and a bar on a terminal, and quiet libraries."""

import errno
import io
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from training.logs import without_secret, without_secrets
from training.monitoring.console import Console
from training.monitoring.records import EvalRecord, StepRecord

ROOT = Path(__file__).parents[3]
GATES = {"in": 0.51, "forget": 0.93, "out": 0.48}
STEP = StepRecord(120, 983_040, "memory", 4.1234, 0.87, 1e-3, 12_345.0, None, GATES, 0.001, 201.0)
LINE = (
    "memory  step   120/480  tokens   983,040  loss 4.1234  grad norm 0.87  lr 1.0e-03  12,345 tok/s  mfu -  "
    "gates in 0.51 forget 0.93 out 0.48  data 0.1%  left 3:21\n"
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Yes."""
        return True


def test_a_log_file_gets_exactly_these_lines() -> None:
    stream = io.StringIO()
    console = Console(480, 3_932_160, stream)
    console.note("phase memory: 240 steps")
    console.step(STEP)
    console.evaluation(EvalRecord(120, 983_040, "memory", 3.9876, 4.2012))
    console.evaluation(EvalRecord(120, 983_040, "memory", 3.9876))
    console.close()
    console.close()
    assert stream.getvalue() == (
        "phase memory: 240 steps\n"
        + LINE
        + "memory  eval   120/480  tokens   983,040  valid loss 3.9876  memory ablated 4.2012 (+0.2136)\n"
        + "memory  eval   120/480  tokens   983,040  valid loss 3.9876\n"
    )


def test_lines_stay_aligned_from_the_first_loss_to_the_last() -> None:
    stream = io.StringIO()
    console = Console(100_000, 819_200_000, stream)
    for step, loss, norm in ((1, 10.98765, 12.3456), (50_000, 4.1, 0.5), (100_000, math.nan, math.inf)):
        console.step(StepRecord(step, step * 8192, "warmup", loss, norm, 1e-3, 12_345.0, 0.5123))
    lines = stream.getvalue().splitlines()
    assert "loss 10.988  grad norm 12.3 " in lines[0]
    assert "loss 4.1000  grad norm 0.50 " in lines[1]
    assert "loss    nan  grad norm  inf " in lines[2]
    assert "mfu 51.2%  data 0.0%  left -" in lines[2]
    assert "gates" not in stream.getvalue()
    for column in ("tokens", "loss", "grad norm", "lr", "tok/s", "mfu", "data", "left"):
        assert len({line.index(column) for line in lines}) == 1, column


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.6, "1:00"),
        (3599, "59:59"),
        (3723, "1:02:03"),
        (183_845, "2d 3:04:05"),
        (math.inf, "-"),
    ],
)
def test_time_left(seconds: float, text: str) -> None:
    stream = io.StringIO()
    Console(10, 100, stream).step(StepRecord(1, 10, "warmup", 1.0, 1.0, 0.1, 1.0, eta_seconds=seconds))
    assert stream.getvalue().endswith(f"left {text}\n")


def test_a_dumb_terminal_is_a_log_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    console = Console(480, 3_932_160, stream)
    console.step(STEP)
    console.close()
    assert stream.getvalue() == LINE


def test_a_narrow_terminal_shows_every_line_whole_and_a_bar_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "20")
    stream = Terminal()
    console = Console(480, 3_932_160, stream)
    console.note("phase memory " + "x" * 100)
    console.step(STEP)
    console.step(STEP)
    console.evaluation(EvalRecord(120, 983_040, "memory", 3.9876, 4.2012))
    console.close()
    assert "\x1b[" in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is back
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    shown = [part for part in re.split(r"[\r\n]+", plain) if part]
    assert shown.count(LINE.rstrip("\n")) == 2
    assert "phase memory " + "x" * 100 in shown
    assert "memory  eval   120/480  tokens   983,040  valid loss 3.9876  memory ablated 4.2012 (+0.2136)" in shown
    bars = [part for part in shown if "━" in part]
    assert any("memory" in bar and "step 120/480" in bar and "3:21 left" in bar for bar in bars)
    assert max(len(bar) for bar in bars) <= 60


class Failing(io.StringIO):
    """A stream that refuses every line."""

    def __init__(self, error: Exception, terminal: bool = False) -> None:
        super().__init__()
        self.error, self.terminal, self.tries = error, terminal, 0

    def isatty(self) -> bool:
        """As asked."""
        return self.terminal

    def write(self, text: str) -> int:
        """Never."""
        self.tries += 1
        raise self.error


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    ("error", "tries_again"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), False),
        (ValueError("I/O operation on closed file"), False),
        (OSError(errno.EIO, "Input/output error"), False),  # a terminal that was closed
        (OSError(errno.ENOSPC, "No space left on device"), True),
    ],
)
def test_a_console_that_takes_no_lines_is_left(
    error: Exception, tries_again: bool, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Failing(error, terminal)
    console = Console(480, 3_932_160, stream)
    for _ in range(3):
        console.note("a line")
        console.step(STEP)
    console.close()
    assert (stream.tries > 1) == tries_again


@pytest.mark.parametrize("terminal", [False, True])
def test_characters_that_a_console_lacks_are_escapes(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    console = Console(480, 3_932_160, stream)
    console.note("run näme – β")
    console.step(replace(STEP, phase="phäse"))
    console.close()
    text = raw.getvalue().decode("ascii")
    assert "run n\\xe4me \\u2013 \\u03b2" in text and "ph\\xe4se" in text


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("how", ["| head -n 1", ">&-", ">&- 2>&-", ">/dev/full"])
def test_a_command_survives_its_console(how: str, unbuffered: str, tmp_path: Path) -> None:
    """Through a shell, as people start it: its own end must not fail on the console either."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom launchers._cli import run\n"
        "from training.monitoring.console import Console\n"
        "def main():\n    console = Console(9, 9)\n"
        "    for _ in range(5000):\n        console.note('a line – of some length')\n"
        "    console.close()\n    Path(sys.argv[1]).write_text('done')\n    return 75\n"
        "sys.exit(run(main))\n"
    )
    command = f"set -o pipefail; '{sys.executable}' '{script}' '{tmp_path}/done' {how}"
    environment = dict(os.environ) | {
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "ascii",
        "PYTHONUNBUFFERED": unbuffered,
    }
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert (tmp_path / "done").read_text() == "done", done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.returncode == 75, done.stderr


def test_a_result_that_cannot_be_written_is_no_success(tmp_path: Path) -> None:
    program = "import sys; from launchers._cli import run; sys.exit(run(lambda: print('a result') or 0))"
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: standard output: No space left on device; its end is lost, all else is done\n"


SPEAK = """
import logging, sys, warnings
from pathlib import Path
from training.logs import hold_warnings, setup_logging
hold_warnings()
deepspeed = logging.getLogger("DeepSpeed")
warnings.warn("at import")
logging.getLogger("py.warnings").info("announced at import")
logging.getLogger("megatron.core.utils").warning("a fork")
setup_logging(Path(sys.argv[1]), int(sys.argv[2]))
logger = setup_logging(Path(sys.argv[1]), int(sys.argv[2]))
deepspeed.addHandler(logging.StreamHandler(sys.stdout))  # as its import does, after us
logger.info("loaded")
logging.getLogger("memtrain.tracking").warning("careful")
deepspeed.info("chatter")
deepspeed.error("broken")
warnings.warn("look here")
logging.getLogger("alembic.runtime.migration").info("upgrade")
"""


@pytest.mark.parametrize("rank", [0, 3])
def test_each_rank_logs_to_its_file_and_only_rank_0_speaks(rank: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SPEAK, str(tmp_path), str(rank)]
    attempts = [
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
        for _ in range(2)
    ]
    for attempt in attempts:
        assert attempt.stdout == ""
        lines = attempt.stderr.splitlines()
        # what libraries warn of goes to the file alone
        assert lines == (["warning: careful", "error: broken"] if rank == 0 else [])
    text = (tmp_path / "log" / f"rank-{rank}.log").read_text()
    imports = ("UserWarning: at import", "announced at import", "a fork")
    for said in ("loaded", "careful", "chatter", "broken", "UserWarning: look here", *imports):
        assert text.count(said) == 2, said  # once an attempt: the second appended, the repeated call doubled nothing
    assert "upgrade" not in text
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ INFO    memtrain  loaded$", text, re.MULTILINE)


def test_warnings_of_a_start_that_has_no_log_are_printed_at_its_end() -> None:
    speak = SPEAK[: SPEAK.index("setup_logging(")]
    done = subprocess.run(
        [sys.executable, "-c", speak], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert "warning: " in done.stderr and "UserWarning: at import" in done.stderr
    assert "warning: a fork" in done.stderr
    assert "announced" not in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:s3cret@host:5000/x", "http://host:5000/x"),
        ("postgresql://me:s3@cret@host/db", "postgresql://host/db"),
        ("https://me:s3/cr?e#t@host", "https://host"),
        ("https://tok3n@host", "https://host"),
        ("GET 'http://a:s3cret@h/x' and http://b:s3cret@i failed", "GET 'http://h/x' and http://i failed"),
        ("mysql://host/db?user=me&password=s3cret&ssl=1", "mysql://host/db?user=me&password=***&ssl=1"),
        ("sqlite:////home/me@work/my:runs@x/mlflow.db", "sqlite:////home/me@work/my:runs@x/mlflow.db"),
        ("http://me:12/3@host", "http://host"),
        ("s3://bucket/corpus@v1", "s3://bucket/corpus@v1"),
        ("http://host:5000", "http://host:5000"),
        ("write to me@example.org", "write to me@example.org"),
    ],
)
def test_secrets_leave_every_address(text: str, shown: str) -> None:
    assert without_secret(text) == shown
    assert without_secrets({"a": [text, 1, None], "b": {"c": text}}) == {
        "a": [shown, 1, None],
        "b": {"c": shown},
    }
