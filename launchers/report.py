"""Write one page that compares runs with published results, as tables and figures."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
  python launchers/report.py runs/lm2 runs/llama runs/delta
      writes report/index.html, which needs no other file, and report.md with its pictures
  python launchers/report.py results.json --output page
      of a file that launchers/evaluate.py wrote, into another folder
"""
MORE = """\
A run's folder may have evaluation/*.json and interpretation/, which evaluate.py and interpret.py write.

exit codes: 0 written; 2 bad input, nothing was written.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import command_parser, path

    parser = command_parser("report", __doc__, EXAMPLES, MORE, argv)
    add = parser.add_argument
    add("runs", type=path, nargs="+", metavar="RUN", help="run folder, or a result file (.json)")
    add("--output", type=path, default=Path("report"), metavar="DIR", help="folder of the page (default report)")
    add("--scorer", choices=("corrected", "official", "exact"), default="corrected",
        help="which of BABILong's scorers the tables show; all three are compared in one (default corrected)"
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    from launchers._cli import exit_code, typed

    return exit_code(lambda: write(arguments, typed("report", argv)))


def write(arguments: argparse.Namespace, command: str) -> None:
    """Write the page and print its files; command: the command line that the page names."""
    from evaluation.report.page import write_report

    print(*write_report(arguments.runs, arguments.output, arguments.scorer, command), sep="\n")


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
