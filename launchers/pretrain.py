"""Pretrain a language model with a memory: the main job.

    python launchers/pretrain.py --config configs/quickstart.yaml
    deepspeed --num_gpus 2 launchers/pretrain.py --config configs/quickstart.yaml parallel.tensor=2

The same command continues a run that was stopped or killed.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

EPILOG = """\
overrides are section.key=value, values are YAML; some that are used often:
  run.name=NAME                 folder of the run below run.output_dir (default runs/)
  parallel.tensor=2             share every layer between 2 ranks
  parallel.pipeline=2           cut the layers into 2 stages
  training.precision=bf16       fp32 master weights stay
  training.stop_after_steps=10  save and stop early (exit code 75)
  tracking.enabled=false        no MLflow
  phases.0.tokens=1000000       a list element is named by its number

exit codes: 0 finished; 2 bad input, nothing was written; 75 saved, run the same command again; else a failure.
One Ctrl-C saves at the end of the step, a second one ends at once (130).
Started by deepspeed, torchrun, srun, mpirun or python; launchers/submit.py makes a Slurm job of it (docs/slurm.md).
The number of ranks that the launcher starts must be a multiple of parallel.tensor x parallel.pipeline x
parallel.segment; what is left over is data parallel.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from launchers._cli import command_parser, config_file, number

    parser = command_parser("pretrain", __doc__, EPILOG)
    parser.add_argument(
        "--config", type=config_file, required=True, metavar="FILE", help="YAML file that describes the run"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change single values of the file")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the file, print parameters, FLOPs and phases, and stop; the data is not looked at",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument(
        "--local_rank", type=number, default=None, help=argparse.SUPPRESS
    )  # from the deepspeed launcher
    arguments, unknown = parser.parse_known_intermixed_args(argv)
    for text in unknown:
        hint = f"; overrides have no dashes: {text.lstrip('-')}" if "=" in text else ""
        parser.error(f"unrecognized argument: {text}{hint}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    # Imports after the arguments: --help answers at once.
    from training.distributed.ranks import RankInfo
    from training.errors import BAD_INPUT, EXIT_BAD_INPUT, EXIT_INTERRUPTED, RankConfigError, RankError, TrainingError

    rank = 0
    try:
        rank = RankInfo.discover(arguments.local_rank).rank
        return launch(arguments)
    except BAD_INPUT as error:
        if rank == 0 or isinstance(error, RankConfigError):
            print(error, file=sys.stderr)
        else:
            time.sleep(3)  # the launcher ends all ranks when one has left: rank 0 speaks first
        return EXIT_BAD_INPUT
    except TrainingError as error:
        if rank == 0 or isinstance(error, RankError):
            print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # once the run has begun, Ctrl-C saves it
        print("interrupted before the run began; nothing was changed", file=sys.stderr)
        return EXIT_INTERRUPTED


def launch(arguments: argparse.Namespace) -> int:
    from training.config import dump_yaml, load_config

    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(dump_yaml(config), end="")
        return 0
    if arguments.dry_run:
        from training.planning.dry_run import describe

        print(describe(config))
        return 0
    from training.session import run

    return run(config, arguments.local_rank)


def leave(code: int) -> NoReturn:
    """End the process with `code`; after a failure without waiting for its threads."""
    if code == 1:
        # other ranks may be gone: threads that still wait for them must not keep this one
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    leave(run_command(main))
