"""Send to MLflow the records of a run that it lacks, also of a run trained without it."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

EXAMPLES = """\
  python launchers/mlflow_sync.py runs/quickstart
  python launchers/mlflow_sync.py runs/* --uri http://mlflow.example.org
      several runs, to another store than their own
  python launchers/mlflow_sync.py runs/quickstart --artifact report.html
"""
MORE = """\
It sends the entries of RUN/tracking-spool.jsonl, then every step of RUN/metrics.jsonl that the store does not have,
then the run's files, then how it ended. Sending twice adds nothing. A run that was never in MLflow becomes a new run
there. A run that is being trained is refused, because it sends its records itself.

The store is the run's own (tracking.uri of its config.yaml, else MLFLOW_TRACKING_URI, else mlflow.db beside the run's
folder). MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are a server's user and password.

exit codes: 0 the stores have everything; 1 a store refused some of it; 2 bad input, or a store cannot be reached.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import command_parser, path

    parser = command_parser("mlflow_sync", __doc__, EXAMPLES, MORE, argv)
    add = parser.add_argument
    add("runs", type=path, nargs="+", metavar="RUN", help="a run's folder, such as runs/quickstart")
    add("--uri", metavar="URI", help="the store, when it is not the run's own")
    add("--artifact", type=path, action="append", default=[], metavar="FILE", help="also send this file or folder")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    from launchers._cli import exit_code
    from training.errors import TrainingError
    from training.logs import quiet_libraries

    quiet_libraries()
    artifacts = tuple(arguments.artifact)
    return max(
        exit_code(partial(send, run, arguments.uri, artifacts), bad_input=(TrainingError,)) for run in arguments.runs
    )


def send(run: Path, uri: str | None, artifacts: tuple[Path, ...]) -> int:
    """Send what the store of one run lacks and print a summary; return 1 when the store refused some of it, else 0."""
    from launchers._cli import say_error
    from training.tracking.sync import sync

    done = sync(run, uri, artifacts)
    new = "a new run" if done.created else "run"
    print(f"{run}: {new} {done.run_id} in {done.uri}, {done.status}", end="")
    print(f"; sent {done.entries} entries that waited and {done.values} values of metrics.jsonl")
    if done.refused:
        say_error(f"{run}: the store refused {done.refused} calls")
    return 1 if done.refused else 0


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
