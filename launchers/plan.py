"""Plan a run without a GPU: memory, time and traffic, and the best topology."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
  python launchers/plan.py --config configs/lm2_1.7b.yaml --devices h200:64
      the fastest topologies of 64 H200, what each rank holds and sends, and how long it takes
  python launchers/plan.py --config configs/lm2_1.7b.yaml --devices h200:8 --as-is
      only the topology of the file; an error when it does not fit
  python launchers/plan.py --config configs/lm2_1.7b.yaml --devices b200 --scale 8,64,512
      days and tokens/s against the number of GPUs: a table, and plan-NAME.png
"""
MORE = """\
  python launchers/plan.py --config configs/lm2_1.7b.yaml --devices h200 --mtbf 50000 --out plans
      failures, checkpoint interval and the fraction of time spent training, and plans/goodput-NAME.png
  python launchers/plan.py --config configs/quickstart.yaml --devices cpu:2
      this machine with one core for each rank, whose speed is measured now

devices: a100 (80 GB), h100, h200, b200 in machines of 8, or cpu; NAME alone means one device.
The line of overrides at the end can be appended to pretrain.py's command; both commands take the same overrides.

exit codes: 0 planned; 2 bad input, or nothing fits (the message names the largest part and how many devices suffice).
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import command_parser, config_file, path

    parser = command_parser("plan", __doc__, EXAMPLES, MORE, argv)
    add = parser.add_argument
    add("--config", type=config_file, required=True, metavar="FILE", help="YAML file that describes the run")
    add("overrides", nargs="*", metavar="section.key=value", help="change single values of the file")
    add("--devices", default="h200:8", metavar="NAME:COUNT",
        help="a100, h100, h200, b200 or cpu (default h200:8)")  # fmt: skip
    add("--as-is", action="store_true", help="plan the topology of the file instead of searching the fastest")
    add("--scale", nargs="?", const="", metavar="N,N,…", help="many numbers of devices, 8 to 4096, with a picture")
    add("--mtbf", nargs="?", const="", metavar="HOURS",
        help="time between failures of one device (default 50000): time spent training, for --scale's numbers"
    )  # fmt: skip
    add("--document-tokens", type=int, metavar="N",
        help=parser.more("tokens of each document; attention stays inside documents (default: they fill its windows)")
    )  # fmt: skip
    add("--out", type=path, default=Path(), metavar="FOLDER", help="where the picture goes")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse_arguments(argv)
    from launchers._cli import exit_code

    return exit_code(lambda: plan(options))


def plan(options: argparse.Namespace) -> None:
    """Print the plan or plans that the options ask for.  Raises `ConfigError` on bad input and when nothing fits."""
    from training.config import load_config
    from training.planning.command import plan_failures, plan_many, plan_one
    from training.planning.devices import parse_devices

    config, (name, count) = load_config(options.config, options.overrides), parse_devices(options.devices)
    documents = options.document_tokens
    if options.mtbf is not None:
        plan_failures(config, name, options.scale or "", options.mtbf, options.out, documents)
    elif options.scale is None:
        plan_one(config, name, count, options.as_is, documents)
    else:
        plan_many(config, name, options.scale, options.out, documents)


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
