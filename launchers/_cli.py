"""What every launcher needs around its own work: paths as typed, and output to whatever console there is."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

EXIT_PIPE_ENDED = 141  # as shells report a program that a closed pipe ended: 128 + SIGPIPE


def path(text: str) -> Path:
    """The type of an option that is a path: `~` and `~user` are home folders, in `--option=~/x` too."""
    from data_prep.sources.places import local_path

    try:
        return local_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} {error}") from None


def place(text: str) -> str:
    """The type of an option that is a path, or an address such as s3://… or hf:NAME."""
    return text if "://" in text or text.startswith("hf:") else str(path(text))


def number(text: str) -> int:
    """The type of an option that counts: a whole number of 64 bits."""
    found = int(text)
    if not -(2**63) <= found < 2**63:
        raise argparse.ArgumentTypeError(f"{text} must be at most {2**63 - 1} (64 bits)")
    return found


def seed(text: str) -> int:
    """The type of --seed: what PyTorch's generators take."""
    number = int(text)
    if not 0 <= number < 2**64:
        raise argparse.ArgumentTypeError(f"{text} must be from 0 to {2**64 - 1} (64 bits)")
    return number


def run(main: Callable[..., int], *arguments: list[str]) -> int:
    """The exit code of `main`, or 141 when what read its output has gone.

    Characters that the console's encoding lacks are written as escapes. A standard stream that is closed is opened to
    nowhere: else the first file that is opened would take its number, and what libraries print would go into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main(*arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        code = EXIT_PIPE_ENDED
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python tries again when it ends, and says so
    return code
