"""Pretrain a language model with a memory, or continue a run that ended early."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

EXAMPLES = """\
  python launchers/pretrain.py --config configs/quickstart.yaml
      the same command continues a run that was stopped or killed
  deepspeed -q --num_gpus 2 launchers/pretrain.py --config configs/quickstart.yaml
      one process a GPU, or two on the CPU; torchrun, srun and mpirun start it too
  python launchers/pretrain.py --config configs/quickstart.yaml --dry-run training.precision=bf16
      check the file and print parameters, FLOPs and phases

overrides that are used often:
  run.name=NAME                 folder of the run below run.output_dir (default runs/)
  parallel.tensor=2             share every layer between 2 ranks
  training.precision=bf16       compute in bfloat16; the optimizer's master weights stay fp32
  tracking.enabled=false        no MLflow
"""
MORE = """\
Values of overrides are YAML; some more:
  parallel.pipeline=2           cut the layers into 2 stages
  training.stop_after_steps=10  save and stop early (exit code 75)
  phases.0.tokens=1000000       a list element is named by its number

The first Ctrl-C saves at the end of the step and stops, a second one ends at once (130).
launchers/submit.py submits the run as a Slurm job (docs/slurm.md).
The number of ranks that the launcher starts must be a multiple of parallel.tensor x parallel.pipeline x
parallel.segment; the quotient is the number of data-parallel ranks.

exit codes: 0 finished; 2 bad input, nothing was written; 75 saved, run the same command again; else a failure.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import command_parser, config_file, number

    parser = command_parser("pretrain", __doc__, EXAMPLES, MORE, argv)
    add = parser.add_argument
    add("--config", type=config_file, required=True, metavar="FILE", help="YAML file that describes the run")
    add("overrides", nargs="*", metavar="section.key=value", help="change single values of the file")
    add("--dry-run", action="store_true",
        help="check the file, print parameters, FLOPs and phases, and stop; the data is not read"
    )  # fmt: skip
    add("--print-config", action="store_true", help="print the resolved configuration and stop")
    add("--local_rank", type=number, default=None, help=argparse.SUPPRESS)  # from the deepspeed launcher
    arguments, unknown = parser.parse_known_intermixed_args(argv)
    for text in unknown:
        hint = f"; overrides have no dashes: {text.lstrip('-')}" if "=" in text else ""
        parser.error(f"unrecognized argument: {text}{hint}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    # Imports after the arguments: --help answers at once.
    from launchers._cli import say_error
    from training.distributed.ranks import RankInfo
    from training.errors import BAD_INPUT, EXIT_BAD_INPUT, EXIT_INTERRUPTED, RankConfigError, RankError, TrainingError

    rank = 0
    try:
        rank = RankInfo.discover(arguments.local_rank).rank
        return launch(arguments)
    except BAD_INPUT as error:
        if rank == 0 or isinstance(error, RankConfigError):
            say_error(error)
        else:
            time.sleep(3)  # a launcher ends all ranks once one has ended: let rank 0 print its message before
        return EXIT_BAD_INPUT
    except TrainingError as error:
        if rank == 0 or isinstance(error, RankError):
            say_error(error)
        return 1
    except KeyboardInterrupt:  # after its start, a run handles Ctrl-C itself
        say_error("interrupted before the run started; nothing was changed")
        return EXIT_INTERRUPTED


def launch(arguments: argparse.Namespace) -> int:
    """Train the run, or print what was asked for; return the exit code.  Raises as `training.session.run` does."""
    from training.config import dump_yaml, load_config

    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(dump_yaml(config), end="")
        return 0
    if arguments.dry_run:
        from training.planning.dry_run import describe

        print(describe(config))
        return 0
    from training.logs import hold_warnings

    hold_warnings()
    from training.session import run

    return run(config, arguments.local_rank)


def leave(code: int) -> NoReturn:
    """End the process with `code`; after a failure do not wait for its threads."""
    if code == 1:
        # other ranks may be gone, and threads that wait for them would keep this process from ending
        sys.stdout.flush()
        sys.stderr.flush()
        logging.shutdown()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    leave(run_command(main))
