"""Check the nodes of a job before training: devices, memory, disk, clock, versions, a small all-reduce.

    srun --ntasks-per-node=1 python launchers/check_nodes.py --folder runs RESULTS

The job script does this at every start (docs/slurm.md).  Started with python alone it checks this machine.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from launchers._cli import command_parser, number, path

    epilog = "RESULTS/NODE gets one line: ok, bad REASON or unclear REASON.  exit codes: 0 ok; 1 not"
    parser = command_parser("check_nodes", __doc__, epilog)
    parser.add_argument("results", type=path, metavar="RESULTS", help="folder for a file a node; all nodes see it")
    parser.add_argument("--gpus", type=number, default=0, metavar="N", help="GPUs the node must have")
    parser.add_argument("--min-memory-gib", type=float, default=1.0, metavar="X", help="memory that must be available")
    parser.add_argument("--min-disk-gib", type=float, default=1.0, metavar="X", help="free space in every --folder")
    parser.add_argument(
        "--folder", type=path, action="append", default=[], dest="folders", help="must be writable; may be repeated"
    )
    parser.add_argument("--max-clock-skew", type=float, default=5.0, metavar="S", help="seconds from the other nodes")
    parser.add_argument("--all-reduce-mib", type=number, default=16, metavar="N", help="size of the all-reduce")
    parser.add_argument("--timeout", type=float, default=240.0, metavar="S", help="seconds to wait for other nodes")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    from training.cluster.nodes import NodeRequirements, check_node
    from training.errors import EXIT_BAD_INPUT, ConfigError, output_folder

    try:
        output_folder(arguments.results, "RESULTS")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
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
