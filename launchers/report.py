"""One page that shows runs beside what was published: tables, figures, and what is missing.

python launchers/report.py runs/lm2 runs/llama runs/delta
python launchers/report.py results.json --output page

RUN is a run's folder (with evaluation/*.json and interpretation/ where they were made) or a file that
launchers/evaluate.py wrote. Writes index.html, which needs nothing else, and report.md with its pictures.

exit codes: 0 written; 2 bad input, nothing was written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from launchers._cli import command_parser, path

    parser = command_parser("report", __doc__)
    parser.add_argument("runs", type=path, nargs="+", metavar="RUN", help="run folder, or a result file (.json)")
    parser.add_argument("--output", type=path, default=Path("report"), metavar="DIR", help="default: report")
    parser.add_argument(
        "--scorer",
        choices=("corrected", "official", "exact"),
        default="corrected",
        help="which of BABILong's scorers the tables show; all three are compared in one (default corrected)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    # Imports after the arguments: --help answers at once.
    from evaluation.report.page import write_report
    from launchers._cli import typed
    from training.errors import BAD_INPUT, EXIT_BAD_INPUT

    try:
        pages = write_report(arguments.runs, arguments.output, arguments.scorer, typed("report", argv))
    except BAD_INPUT as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    print(*pages, sep="\n")
    return 0


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
