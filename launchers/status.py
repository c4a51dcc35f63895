"""Show the status of a run: job, step, loss, time left, checkpoint, ranks, errors."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
  python launchers/status.py runs/quickstart
  python launchers/status.py runs/quickstart --watch 5
      again every 5 seconds
  python launchers/status.py runs/quickstart --json | jq .loss
"""
MORE = """\
state: finished; training; hanging (a rank gives no sign of life); waiting (its Slurm job waits); starting; stopped
(saved, the same command continues it); failed; dead (killed without a message); new.
It reads the run's folder, and asks squeue, scontrol and sacct where there is Slurm. It writes nothing.

exit codes: 0 shown; 2 not a run's folder.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import command_parser, path

    parser = command_parser("status", __doc__, EXAMPLES, MORE, argv)
    add = parser.add_argument
    add("run", type=path, metavar="RUN", help="a run's folder, such as runs/quickstart")
    add("--watch", type=float, metavar="SECONDS", help="repeat every so many seconds, until the run ends or Ctrl-C")
    add("--json", action="store_true", help="print one JSON object each time, for programs")
    arguments = parser.parse_args(argv)
    if arguments.watch is not None and arguments.watch <= 0:
        parser.error(f"--watch: {arguments.watch:g} must be a number of seconds above 0")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    from launchers._cli import exit_code

    try:
        return exit_code(lambda: show(arguments.run, arguments.watch, arguments.json))
    except KeyboardInterrupt:  # the normal end of --watch
        return 0


def show(run: Path, every: float | None, as_json: bool) -> None:
    """Show the status once (every: None), or every so many seconds until the run is finished."""
    from rich.console import Console
    from rich.live import Live

    from training.monitoring.status import status_of
    from training.monitoring.status_screen import screen

    status, console = status_of(run), Console()
    if as_json or every is None:
        while True:
            print(json.dumps(status.to_json())) if as_json else console.print(screen(status))
            if every is None or status.state == "finished":
                return
            time.sleep(every)
            status = status_of(run)
    with Live(screen(status), console=console, auto_refresh=False) as live:
        while status.state != "finished":
            time.sleep(every)
            status = status_of(run)
            live.update(screen(status), refresh=True)


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
