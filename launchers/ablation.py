"""A family of runs that differ in one thing, such as the blocks that host a memory (LM2's Figure 5).

python launchers/ablation.py --config configs/ablation/figure5_small.yaml
python launchers/ablation.py --config configs/ablation/figure5_small.yaml --dry-run
python launchers/ablation.py --config configs/ablation/figure5.yaml --cluster CLUSTER.yaml

Starts the members one after the other by the command one would type, which is printed; the same command continues where
it was stopped and leaves finished members alone. With --cluster every member is submitted to Slurm instead.
Then: python launchers/report.py runs/FAMILY-*

exit codes: 0 all finished, or submitted; 2 bad input, nothing was started; else that of the member that stopped it.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.config.family import Member

HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the family: base, overrides, runs")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change values of every member")
    parser.add_argument("--dry-run", action="store_true", help="check all members, print their commands, start nothing")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--ranks", type=int, default=1, metavar="N", help="ranks of each run, through deepspeed (default 1)"
    )
    how.add_argument("--cluster", metavar="C", help="submit every member by launchers/submit.py --cluster C")
    return parser.parse_intermixed_args()


def main() -> int:
    arguments = parse_arguments()
    # Imports after the arguments: --help answers at once.
    from training.cluster.profile import load_profile
    from training.config.family import load_family
    from training.errors import BAD_INPUT, EXIT_BAD_INPUT, ConfigError

    try:
        if arguments.ranks < 1:
            raise ConfigError(f"--ranks: {arguments.ranks} must be at least 1")
        members = load_family(arguments.config, tuple(arguments.overrides))
        if arguments.cluster is not None:
            load_profile(Path(arguments.cluster))  # before the first member is submitted
    except BAD_INPUT as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    return run_all(members, arguments)


def run_all(members: "list[Member]", arguments: argparse.Namespace) -> int:
    """Run them in turn; the exit code of the first that did not finish, and 0 when all did."""
    for number, member in enumerate(members, 1):
        command = command_of(member, arguments)
        print(f"# {number}/{len(members)} {member.config.run.folder}", flush=True)
        print(shlex.join(command), flush=True)
        if arguments.dry_run:
            continue
        code = subprocess.run(command, check=False).returncode
        if code:
            print(f"{member.config.run.name} ended with {code}; the same command goes on from here", file=sys.stderr)
            return code
    if not arguments.dry_run and arguments.cluster is None:
        folders = shlex.join(str(member.config.run.folder) for member in members)
        print(f"all finished; their figure: python launchers/report.py {folders}")
    return 0


def command_of(member: "Member", arguments: argparse.Namespace) -> list[str]:
    """What one would type for this member."""
    given = ["--config", str(member.base), *member.overrides]
    if arguments.cluster is not None:
        return [sys.executable, str(HERE / "submit.py"), "--cluster", arguments.cluster, *given]
    if arguments.ranks > 1:
        deepspeed = str(Path(sys.executable).parent / "deepspeed")
        return [deepspeed, "--num_gpus", str(arguments.ranks), str(HERE / "pretrain.py"), *given]
    return [sys.executable, str(HERE / "pretrain.py"), *given]


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.exit(main())
