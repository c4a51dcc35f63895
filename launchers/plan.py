"""Plan a run before any GPU is asked: what it holds, sends and takes, and how to arrange it.

python launchers/plan.py --config configs/lm2_1.7b.yaml --devices h200:64
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EPILOG = """\
examples:
  python launchers/plan.py --config configs/lm2_1.7b.yaml --devices h200:64
      the fastest topologies of 64 H200, what each rank holds and sends, and how long the configured tokens take
  python launchers/plan.py --config configs/lm2_1.7b.yaml --devices a100:16 --as-is parallel.tensor=2
      the configuration's own topology alone; refused when it does not fit
  python launchers/plan.py --config configs/lm2_1.7b.yaml --devices b200 --scale 8,64,512,4096 --out plans
      days and tokens/s against the number of GPUs: a table, and plans/plan-NAME.png
  python launchers/plan.py --config configs/lm2_1.7b.yaml --devices h200 --mtbf 50000 --out plans
      failures, checkpoint interval and the share of time that trains, and plans/goodput-NAME.png
  python launchers/plan.py --config configs/quickstart.yaml --devices cpu:2
      this machine with one core a rank, measured on the spot

devices: a100 (80 GB), h100, h200, b200 in machines of 8, or cpu; NAME alone is one of them.
The line of overrides at the end can be appended to pretrain.py's command; overrides here are the same as there.
exit codes: 0 planned; 2 bad input, or nothing fits (what is largest, and what would do, is said)
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; argparse itself leaves with code 2 when it is wrong."""
    from launchers._cli import command_parser, config_file, path

    parser = command_parser("plan", __doc__, EPILOG)
    parser.add_argument(
        "--config", type=config_file, required=True, metavar="FILE", help="YAML file that describes the run"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change single values of the file")
    parser.add_argument("--devices", default="h200:8", metavar="NAME:COUNT", help="what to run on (default h200:8)")
    parser.add_argument("--as-is", action="store_true", help="plan the file's own topology, search for no other")
    parser.add_argument(
        "--scale",
        nargs="?",
        const="",
        metavar="N,N,…",
        help="plan many numbers of devices, 8 to 4096, and draw them",
    )
    parser.add_argument(
        "--mtbf",
        nargs="?",
        const="",
        metavar="HOURS",
        help="between two failures of one device (default 50000): the share of time that trains, for --scale's numbers",
    )
    parser.add_argument(
        "--document-tokens",
        type=int,
        metavar="N",
        help="of each document; attention stays inside documents (default: they fill its windows)",
    )
    parser.add_argument("--out", type=path, default=Path(), metavar="FOLDER", help="where the picture goes")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = parse_arguments(argv)
    # Imports after the arguments: --help answers at once.
    from training.config import load_config
    from training.errors import BAD_INPUT, EXIT_BAD_INPUT, EXIT_FINISHED
    from training.planning.command import plan_failures, plan_many, plan_one
    from training.planning.devices import parse_devices

    try:
        config, (name, count) = load_config(options.config, options.overrides), parse_devices(options.devices)
        if options.mtbf is not None:
            plan_failures(config, name, options.scale or "", options.mtbf, options.out, options.document_tokens)
        elif options.scale is None:
            plan_one(config, name, count, options.as_is, options.document_tokens)
        else:
            plan_many(config, name, options.scale, options.out, options.document_tokens)
    except BAD_INPUT as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    return EXIT_FINISHED


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
