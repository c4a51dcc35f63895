"""List, verify, copy and average checkpoints."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
  python launchers/checkpoint.py list runs/quickstart
  python launchers/checkpoint.py verify runs/quickstart
      read every byte of all its checkpoints and compare the checksums
  python launchers/checkpoint.py average soup \\
      runs/a/checkpoints/step-00000360 runs/a/checkpoints/step-00000400
      the mean of the weights, to start a phase from
"""
MORE = """\
PATH is a checkpoint folder, or a run's folder for its latest checkpoint; it may be an address that fsspec knows
(s3://BUCKET/PATH/step-XXXXXXXX), which is fetched and verified first.  For Hugging Face: launchers/export.py.

exit codes: 0 done; 1 a checkpoint is damaged; 2 bad input, nothing was written.
"""
WAY_OUT = "the checkpoint is damaged: copy it again, or use another"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import command_parser, path, place

    parser = command_parser("checkpoint", __doc__, EXAMPLES, MORE, argv)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("list", help="list the checkpoints of a run: step, phase, tokens, size, damage")
    command.add_argument("run", type=path, metavar="RUN")
    command = commands.add_parser("verify", help="read every byte and compare the checksums")
    command.add_argument("paths", type=place, nargs="+", metavar="PATH", help="of a run's folder: all its checkpoints")
    command = commands.add_parser("copy", help="copy a checkpoint and verify the copy")
    command.add_argument("source", type=place, metavar="PATH")
    command.add_argument("target", type=path, metavar="NEW")
    command = commands.add_parser("average", help="average the weights of checkpoints, to start a phase from")
    command.add_argument("target", type=path, metavar="NEW")
    command.add_argument("sources", type=place, nargs="+", metavar="PATH", help="two or more checkpoints of one model")
    arguments = parser.parse_args(argv)
    if arguments.command == "average" and len(arguments.sources) < 2:
        parser.error("average: give two checkpoints or more after NEW; launchers/checkpoint.py copy takes one")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    from launchers._cli import exit_code
    from training.checkpoint.manifest import DamagedError
    from training.errors import TrainingError

    def acted() -> int:
        try:
            return act(arguments)
        except DamagedError as error:
            raise DamagedError(f"{error}; {WAY_OUT}") from None

    return exit_code(acted, bad_input=(TrainingError, OSError), failure=(DamagedError,))


def act(arguments: argparse.Namespace) -> int:
    """Run the subcommand and return its exit code.  Raises what `training.checkpoint.tools` raises."""
    from training.checkpoint import tools

    if arguments.command == "list":
        show(arguments.run)
    elif arguments.command == "verify":
        return verify([path for text in arguments.paths for path in all_of(text)])
    elif arguments.command == "copy":
        tools.copy(one_of(arguments.source), arguments.target)
        print(f"copied to {arguments.target}")
    else:
        tools.average([one_of(text) for text in arguments.sources], arguments.target)
        print(f"mean of {len(arguments.sources)} checkpoints: {arguments.target}; use it as init_from: checkpoint:PATH")
    return 0


def show(run: Path) -> None:
    """Print a line for each checkpoint of a run."""
    from training.checkpoint.tools import listed

    for found in listed(run):
        state, mark = found.state, "  <- latest" if found.latest else ""
        about = f"phase {state.phase}  tokens {state.tokens:,}" if state else f"DAMAGED: {found.problem}"
        print(f"{found.path.name}  {found.bytes / 1e6:,.1f} MB  {about}{mark}")


def verify(paths: list[Path]) -> int:
    """Verify checkpoints and print the result of each; return 1 when one is damaged, else 0."""
    from launchers._cli import say_error
    from training.checkpoint.manifest import DamagedError
    from training.checkpoint.manifest import verify as verify_one
    from training.checkpoint.safe_reader import read_metadata

    damaged = 0
    for path in paths:
        try:
            files = verify_one(path)
            read_metadata(path)
            print(f"{path}: whole, {len(files)} files, {sum(entry.bytes for entry in files.values()) / 1e6:,.1f} MB")
        except DamagedError as error:
            damaged += 1
            say_error(f"{error}; {WAY_OUT}")
    return 1 if damaged else 0


def one_of(text: str) -> Path:
    """Return the checkpoint at the path or address `text`, or the latest one when it is a run's folder."""
    from training.checkpoint.remote import local_copy
    from training.checkpoint.trained_model import find_checkpoint

    return find_checkpoint(local_copy(text, "PATH"), "PATH")


def all_of(text: str) -> list[Path]:
    """Return the checkpoint at the path or address `text`, or all of them when it is a run's folder."""
    from training.checkpoint.manifest import steps_of
    from training.checkpoint.remote import local_copy
    from training.errors import ConfigError

    path = local_copy(text, "PATH")
    found = steps_of(path / "checkpoints") or steps_of(path)
    if not found and not path.is_dir():
        raise ConfigError(f"PATH: {text} does not exist; pass a run's folder such as runs/NAME, or a checkpoint's")
    return found or [path]


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
