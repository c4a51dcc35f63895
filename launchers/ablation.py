"""Run a family of runs that differ in one thing, such as where the memory is."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.config.family import Member

HERE = Path(__file__).resolve().parent

EXAMPLES = """\
  python launchers/ablation.py --config configs/ablation/figure5_small.yaml --dry-run
      check all members of the family and print the command of each
  python launchers/ablation.py --config configs/ablation/figure5_small.yaml
      train them one after the other; the same command continues, finished members are left alone
  python launchers/ablation.py --config configs/ablation/figure5.yaml --cluster local
      submit each of them to Slurm instead
"""
MORE = """\
A family file has a base configuration, overrides for all members, and the runs with their own overrides:
configs/ablation/figure5.yaml is LM2's Figure 5, the blocks that host a memory.
Then: python launchers/report.py runs/FAMILY-*

exit codes: 0 all finished, or submitted; 2 bad input, nothing was started; else that of the member that failed.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import cluster_file, command_parser, config_file, number

    parser = command_parser("ablation", __doc__, EXAMPLES, MORE, argv)
    add = parser.add_argument
    add("--config", type=config_file, required=True, metavar="FILE", help="the family: base, overrides, runs")
    add("overrides", nargs="*", metavar="section.key=value", help="change values of every member")
    add("--dry-run", action="store_true", help="check all members, print their commands, start nothing")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--ranks", type=number, default=1, metavar="N", help="ranks of each run, through deepspeed (default 1)"
    )
    how.add_argument(
        "--cluster", type=cluster_file, metavar="C", help="submit every member by launchers/submit.py --cluster C"
    )
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments(argv)
    from launchers._cli import exit_code

    return exit_code(lambda: run_all(members_of(arguments), arguments))


def members_of(arguments: argparse.Namespace) -> "list[Member]":
    """Return the members of the family, after checking all of them and the cluster's file.  Raises `ConfigError`."""
    from training.cluster.profile import load_profile
    from training.config.family import load_family
    from training.errors import ConfigError

    if arguments.ranks < 1:
        raise ConfigError(f"--ranks: {arguments.ranks} must be at least 1")
    members = load_family(arguments.config, tuple(arguments.overrides))
    if arguments.cluster is not None:
        load_profile(arguments.cluster)
    return members


def run_all(members: "list[Member]", arguments: argparse.Namespace) -> int:
    """Run the members in turn; return the exit code of the first that did not finish, 0 when all did."""
    from launchers._cli import say_error

    for number, member in enumerate(members, 1):
        command = command_of(member, arguments)
        print(f"# {number}/{len(members)} {member.config.run.folder}", flush=True)
        print(shlex.join(command), flush=True)
        if arguments.dry_run:
            continue
        code = subprocess.run(command, check=False).returncode
        if code:
            say_error(f"{member.config.run.name} ended with exit code {code}; the same command continues from here")
            return code
    if not arguments.dry_run and arguments.cluster is None:
        folders = shlex.join(str(member.config.run.folder) for member in members)
        print(f"all finished; their figure: python launchers/report.py {folders}")
    return 0


def command_of(member: "Member", arguments: argparse.Namespace) -> list[str]:
    """Return the command line that trains or submits one member."""
    given = ["--config", str(member.base), *member.overrides]
    if arguments.cluster is not None:
        return [sys.executable, str(HERE / "submit.py"), "--cluster", str(arguments.cluster), *given]
    if arguments.ranks > 1:
        deepspeed = str(Path(sys.executable).parent / "deepspeed")
        return [deepspeed, "--num_gpus", str(arguments.ranks), str(HERE / "pretrain.py"), *given]
    return [sys.executable, str(HERE / "pretrain.py"), *given]


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
