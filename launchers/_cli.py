"""Code shared by all commands: parser, short and full help, types of options, shipped configurations, error messages.

At module level it imports only the standard library and the version, so that `--help` answers at once.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from training.version import __version__

PACKAGE = Path(__file__).resolve().parent
CONFIGS = PACKAGE.parent / "configs"
EXIT_INTERRUPTED = 130  # as shells report a program that Ctrl-C ended: 128 + SIGINT
EXIT_PIPE_ENDED = 141  # as shells report a program that a closed pipe ended: 128 + SIGPIPE
NO_TRANSFORMERS = "Hugging Face Transformers is missing; install the extra: pip install 'memtrain[hf]'"


def command_names() -> list[str]:
    """Return the names of all commands, in alphabetical order."""
    return sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("_"))


def shipped_configs(folder: str = "") -> list[str]:
    """Return the names of the YAML files in `configs/FOLDER`, which `--config` or `--cluster` take besides a path."""
    return sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml"))


def config_file(text: str) -> Path:
    """Return the file that `--config` names: a path, or a shipped configuration such as `ablation/figure5`."""
    return _find(text, "")


def cluster_file(text: str) -> Path:
    """Return the file that `--cluster` names: a path, or a shipped cluster profile such as `local`."""
    return _find(text, "cluster")


def _find(text: str, folder: str) -> Path:
    file = path(text)
    if file.suffix in (".yaml", ".yml") or file.is_file():
        return file  # the reader of the file reports a missing one, together with other problems
    shipped = CONFIGS / folder / f"{text}.yaml"
    if shipped.is_file():
        return shipped
    names = ", ".join(shipped_configs(folder))
    raise argparse.ArgumentTypeError(f"{text!r} is neither a file nor a shipped configuration; those are {names}")


def started_as_memtrain() -> bool:
    """Return whether this process was started as the program `memtrain`, not as a file of a checkout."""
    return Path(sys.argv[0]).stem == "memtrain"


def typed(name: str, argv: Sequence[str] | None = None) -> str:
    """Return the command line that runs command `name` with the arguments `argv` (default: those of this process)."""
    program = f"memtrain {name}" if started_as_memtrain() else f"python launchers/{name}.py"
    return shlex.join([*program.split(), *(sys.argv[1:] if argv is None else argv)])


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all errors of the commands."""

    full = False  # whether the command line asks for --help-all

    def more(self, text: str) -> str:
        """Return the help text of an option that only `--help-all` shows."""
        return text if self.full else argparse.SUPPRESS

    def error(self, message: str) -> NoReturn:
        """Print the error and how to get help, and end the process with exit code 2."""
        say_error(f"{message}; see {self.prog} --help")
        sys.exit(2)


def command_parser(
    name: str, purpose: str | None, examples: str, more: str = "", argv: Sequence[str] | None = None
) -> CommandParser:
    """Return the parser of command `name`, whose help shows commands in the form that the reader must type.

    Args:
        name: The command.
        purpose: One line.
        examples: Two or three command lines and what they do, 100 columns at most.
        more: What only `--help-all` shows: further examples, rules, exit codes.
        argv: The arguments, by default those of the process; they say which help is asked for.

    `--help` is at most 40 lines of 100 columns: usage, purpose, the options most used, examples.  Options that are
    used less often get `help=parser.more("…")`.
    """
    parser = CommandParser(prog=typed(name, ()), add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.full = "--help-all" in (sys.argv[1:] if argv is None else argv)
    parser.description = _as_typed(purpose)
    parts = [f"examples:\n{examples.rstrip()}"]
    if parser.full:
        parts += [more.strip()] if more else []
    else:
        parts += [f"{parser.prog} --help-all: every option, rules, exit codes"]
    parser.epilog = _as_typed("\n\n".join(parts))
    parser.add_argument("-h", "--help", action="help", help="show this and stop")
    parser.add_argument("--help-all", action="help", help="show every option, rules and exit codes, and stop")
    parser.add_argument(
        "--version", action="version", version=f"memtrain {__version__}", help=parser.more("print the version")
    )
    return parser


def _as_typed(text: str | None) -> str | None:
    """Return `text` with the commands of a checkout replaced by those of the installed package, when that runs."""
    if text is None or not started_as_memtrain():
        return text
    text = re.sub(r"((?:deepspeed|torchrun) [^\n]*?)launchers/(\w+)\.py", r"\1--module launchers.\2", text)
    text = re.sub(r"(?:python )?launchers/(\w+)\.py", r"memtrain \1", text)
    return re.sub(r"configs/(?:cluster/)?([\w./]+)\.yaml", r"\1", text)


def path(text: str) -> Path:
    """Convert an option that is a path; `~` and `~user` are home folders, also in `--option=~/x`."""
    from data_prep.sources.places import local_path

    try:
        return local_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} {error}") from None


def place(text: str) -> str:
    """Convert an option that is a path, or an address such as s3://… or hf:NAME."""
    return text if "://" in text or text.startswith("hf:") else str(path(text))


def number(text: str) -> int:
    """Convert an option that is a whole number of at most 64 bits."""
    found = int(text)
    if not -(2**63) <= found < 2**63:
        raise argparse.ArgumentTypeError(f"{text} must be at most {2**63 - 1} (64 bits)")
    return found


def seed(text: str) -> int:
    """Convert --seed: a number that PyTorch's generators accept."""
    number = int(text)
    if not 0 <= number < 2**64:
        raise argparse.ArgumentTypeError(f"{text} must be from 0 to {2**64 - 1} (64 bits)")
    return number


def say_error(problem: object) -> None:
    """Print `problem` on standard error; each of its lines begins with `error: `, except indented ones."""
    lines = [line if line.startswith(" ") else f"error: {line}" for line in str(problem).splitlines()]
    print("\n".join(lines), file=sys.stderr)


def exit_code(
    act: Callable[[], int | None],
    bad_input: tuple[type[Exception], ...] = (),
    failure: tuple[type[Exception], ...] = (),
) -> int:
    """Call `act` and return the command's exit code; print an error that it raises.

    Args:
        act: Returns an exit code, or None for 0.
        bad_input: Errors besides `BAD_INPUT` that the user can correct: exit code 2.
        failure: Subclasses of errors in `bad_input` that get exit code 1 instead, like any other `TrainingError`.
    """
    from training.errors import BAD_INPUT, EXIT_BAD_INPUT, TrainingError

    refused: tuple[type[Exception], ...] = (*BAD_INPUT, *bad_input)
    try:
        return act() or 0
    except refused as error:
        say_error(error)
        return 1 if isinstance(error, failure) else EXIT_BAD_INPUT
    except TrainingError as error:
        say_error(error)
        return 1
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        say_error(NO_TRANSFORMERS)
        return EXIT_BAD_INPUT


def run(main: Callable[..., int], *arguments: list[str]) -> int:
    """Call `main` and return its exit code; 130 after Ctrl-C, 141 when the reader of its output is gone.

    When the end of the output cannot be written, 0 becomes 1.
    Characters that the console's encoding lacks are written as escapes. A closed standard stream is opened to
    /dev/null, because the next file that is opened would otherwise take its number and get what libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _written(main(*arguments))
    except KeyboardInterrupt:
        say_error("interrupted")
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        code = EXIT_PIPE_ENDED
        _drop_output()
    return code


def _written(code: int) -> int:
    """Return `code`, or 1 instead of 0 when the last of the output cannot be written, for example to a full disk."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        say_error(f"standard output: {error.strerror}; its end is lost, all else is done")
        code = code or 1
        _drop_output()
    return code


def _drop_output() -> None:
    """Send what is left of standard output nowhere: Python's own last flush would fail and print a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
