"""The help of every command fits one screen and teaches; errors have one form; colours stay where they are wanted."""

import argparse
import importlib
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launchers import __main__ as memtrain
from launchers._cli import command_names, exit_code
from tests.unit.training.config_case import TINY
from training.config import dump_yaml, parse_config
from training.errors import ConfigError, TrainingError

ROOT = Path(__file__).parents[3]
LINES, COLUMNS = 40, 100  # of a screen


def shown(name: str, option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"launchers.{name}").main([option])
    assert end.value.code == 0
    return capsys.readouterr().out


def examples(text: str) -> Iterator[list[str]]:
    """The command lines below "examples:" that are whole, as words from the launcher on."""
    below = re.sub(r" *\\\n *", " ", text[text.index("\nexamples:\n") :])
    for line in re.findall(r"^  (?:cat \S+ \| |srun .*|deepspeed .*)?(?:python )?(launchers/.*)$", below, re.MULTILINE):
        command = re.split(r" [|>] ", line)[0]
        if "…" not in command:
            yield [f"{word}.yaml" if word in ("F", "C") else word for word in shlex.split(command)]


@pytest.mark.parametrize("name", command_names())
def test_help_fits_one_screen_and_teaches(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(name, "--help", capsys, monkeypatch)
    assert len(text.splitlines()) <= LINES
    assert max(map(len, text.splitlines())) <= COLUMNS
    purpose = (importlib.import_module(f"launchers.{name}").__doc__ or "").strip()
    assert "\n" not in purpose
    assert text.startswith(f"usage: python launchers/{name}.py")
    assert f"\n\n{purpose}\n\n" in text
    assert text.count("launchers/") >= 2
    assert 2 <= len(re.findall(r"^  \S.*launchers/", text[text.index("\nexamples:\n") :], re.MULTILINE)) <= 3
    assert text.endswith("--help-all: every option, rules, exit codes\n")


@pytest.mark.parametrize("name", command_names())
def test_the_long_help_has_what_the_short_one_leaves_out(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = (shown(name, option, capsys, monkeypatch) for option in ("--help", "--help-all"))
    assert "exit codes: " in long
    for option in re.findall(r"^  (-\S+)", short, re.MULTILINE):
        assert option in long
    missing: list[str] = []

    def note(parser: argparse.ArgumentParser, *_: object) -> argparse.Namespace:
        actions = [a for a in parser._actions if a.option_strings and a.option_strings[0] != "--local_rank"]
        missing.extend(a.option_strings[0] for a in actions if a.help == argparse.SUPPRESS or not a.help)
        raise SystemExit(0)

    for method in ("parse_args", "parse_intermixed_args", "parse_known_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, method, note)
    with pytest.raises(SystemExit):
        importlib.import_module(f"launchers.{name}").parse_arguments(["--help-all"])
    assert missing == []


@pytest.mark.parametrize("name", command_names())
def test_examples_of_the_help_are_accepted(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    found = list(examples(shown(name, "--help-all", capsys, monkeypatch)))
    assert len(found) >= 1
    for command, *words in found:
        module = importlib.import_module(f"launchers.{Path(command).stem}")
        assert module.parse_arguments(words)


def test_the_overview_fits_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert memtrain.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS


@pytest.mark.parametrize("name", command_names())
def test_a_wrong_option_is_one_line_with_the_way_out(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"launchers.{name}").main(["--no-such-option"])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(rf"error: .+; see python launchers/{name}\.py --help\n", printed.err)


def test_errors_have_one_form_and_their_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise ConfigError("a: 1 must be 2\nb: 3 must be 4")

    def fail() -> None:
        raise TrainingError("rank 0: out of memory\n  of which 1 GiB is weights")

    def lack() -> None:
        raise ModuleNotFoundError(name="transformers")

    assert exit_code(refuse) == 2
    assert capsys.readouterr().err == "error: a: 1 must be 2\nerror: b: 3 must be 4\n"
    assert exit_code(fail) == 1
    assert capsys.readouterr().err == "error: rank 0: out of memory\n  of which 1 GiB is weights\n"
    assert exit_code(fail, bad_input=(TrainingError,)) == 2
    assert exit_code(fail, bad_input=(TrainingError,), failure=(TrainingError,)) == 1
    capsys.readouterr()
    assert exit_code(lack) == 2
    assert "Transformers is missing; install the extra: pip install" in capsys.readouterr().err
    assert exit_code(lambda: None) == 0
    assert exit_code(lambda: 75) == 75


def test_ctrl_c_ends_a_command_without_a_traceback() -> None:
    code = (
        "import os, signal, sys\nfrom launchers._cli import run\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it\n"
        "def main():\n    os.kill(os.getpid(), signal.SIGINT)\n    return 0\nsys.exit(run(main))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


# -- colours ---------------------------------------------------------------------------------------------------------

COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")


def on_a_terminal(command: list[str], extra: dict[str, str]) -> bytes:
    """What the command writes to a terminal of 120 columns."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    leader, follower = pty.openpty()
    env = kept | {"TERM": "xterm-256color", "COLUMNS": "120"} | extra
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=env, stdout=follower, stderr=follower, close_fds=True
    )
    os.close(follower)
    written = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux reports the end of a terminal as an error
            break
        if not part:
            break
        written += part
    os.close(leader)
    assert process.wait() == 0, written.decode()
    return written


@pytest.fixture
def status(tmp_path: Path) -> list[str]:
    """The command that shows how a run stands, on a run that has not begun."""
    (tmp_path / "config.yaml").write_text(dump_yaml(parse_config(TINY)), encoding="utf-8")
    return ["launchers/status.py", str(tmp_path)]


def test_no_color_is_honoured(status: list[str]) -> None:
    assert COLOUR.search(on_a_terminal(status, {})), "or this test shows nothing"
    plain = on_a_terminal(status, {"NO_COLOR": "1"})
    assert b"warmup" in plain
    assert not COLOUR.search(plain)


def test_a_pipe_gets_plain_text(status: list[str]) -> None:
    env = {k: v for k, v in os.environ.items() if k != "FORCE_COLOR"} | {"TERM": "xterm-256color"}
    done = subprocess.run([sys.executable, *status], cwd=ROOT, env=env, capture_output=True, check=True)
    assert b"warmup" in done.stdout
    assert b"\x1b" not in done.stdout + done.stderr
