"""Check the nodes of a job before training: devices, memory, disk, clock, network."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
  python launchers/check_nodes.py checked
      check this machine alone
  srun --ntasks-per-node=1 python launchers/check_nodes.py --gpus 8 --folder runs checked
      check every node of a job, with a small all-reduce between them
"""
MORE = """\
The job script of launchers/submit.py does this at every start (docs/slurm.md).
RESULTS/NODE gets one line: ok, bad REASON or unclear REASON.

exit codes: 0 ok; 1 not; 2 bad input.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import command_parser, number, path

    parser = command_parser("check_nodes", __doc__, EXAMPLES, MORE, argv)
    add, more = parser.add_argument, parser.more
    add("results", type=path, metavar="RESULTS", help="folder shared by all nodes, for a file of each node")
    add("--gpus", type=number, default=0, metavar="N", help="GPUs the node must have (default 0)")
    add("--folder", type=path, action="append", default=[], dest="folders", metavar="FOLDER",
        help="a folder that must be writable; may be repeated")  # fmt: skip
    add("--min-memory-gib", type=float, default=1.0, metavar="X", help="memory that must be available (default 1)")
    add("--min-disk-gib", type=float, default=1.0, metavar="X", help="free space in every --folder (default 1)")
    add("--max-clock-skew", type=float, default=5.0, metavar="S", help=more("seconds to other clocks (default 5)"))
    add("--all-reduce-mib", type=number, default=16, metavar="N", help=more("size of the all-reduce (default 16)"))
    add("--timeout", type=float, default=240.0, metavar="S", help=more("seconds to wait for other nodes (default 240)"))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    from launchers._cli import exit_code

    return exit_code(lambda: check(arguments))


def check(arguments: argparse.Namespace) -> int:
    """Check this node and print the result; return 0 when it is fit, else 1."""
    from training.cluster.nodes import NodeRequirements, check_node
    from training.errors import output_folder

    output_folder(arguments.results, "RESULTS")
    wanted = NodeRequirements(
        gpus=arguments.gpus,
        memory_gib=arguments.min_memory_gib,
        disk_gib=arguments.min_disk_gib,
        folders=arguments.folders,
        clock_skew=arguments.max_clock_skew,
        all_reduce_mib=arguments.all_reduce_mib,
        timeout=arguments.timeout,
    )
    verdict = check_node(wanted, arguments.results)
    print(verdict)
    return 0 if ": ok" in verdict else 1


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
