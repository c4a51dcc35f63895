"""Send a run's missing records to MLflow: after its server was away, or for a run that was trained without it.

python launchers/mlflow_sync.py runs/quickstart
python launchers/mlflow_sync.py runs/* --uri http://mlflow.example.org
python launchers/mlflow_sync.py runs/quickstart --artifact report.html
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EPILOG = """\
What waits in RUN/tracking-spool.jsonl goes first, then every step of RUN/metrics.jsonl that the store does not have,
then the run's files, then how it ended. Doing it twice adds nothing. A run that was never in MLflow becomes a new one
there. A run that is being trained is left alone: it sends what waits by itself.

The store is the run's own (tracking.uri of its config.yaml, else MLFLOW_TRACKING_URI, else mlflow.db beside the run's
folder). MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are a server's user and password.

exit codes: 0 the stores have everything; 1 a store refused some of it; 2 bad input, or a store is away.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from launchers._cli import command_parser, path

    parser = command_parser("mlflow_sync", __doc__, EPILOG)
    parser.add_argument("runs", type=path, nargs="+", metavar="RUN", help="a run's folder, such as runs/quickstart")
    parser.add_argument("--uri", metavar="URI", help="the store, when it is not the run's own")
    parser.add_argument(
        "--artifact", type=path, action="append", default=[], metavar="FILE", help="keep this file or folder with it"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    # Imports after the arguments: --help answers at once.
    from training.errors import BAD_INPUT, EXIT_BAD_INPUT, TrainingError
    from training.logs import quiet_libraries
    from training.tracking.sync import sync

    quiet_libraries()
    code = 0
    for run in arguments.runs:
        try:
            done = sync(run, arguments.uri, tuple(arguments.artifact))
        except (*BAD_INPUT, TrainingError) as error:
            print(error, file=sys.stderr)
            code = EXIT_BAD_INPUT
            continue
        new = "a new run" if done.created else "run"
        print(f"{run}: {new} {done.run_id} in {done.uri}, {done.status}", end="")
        print(f"; sent {done.entries} waiting entries and {done.values} values of metrics.jsonl")
        if done.refused:
            print(f"{run}: the store refused {done.refused} calls", file=sys.stderr)
            code = code or 1
    return code


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
