"""Submit a run to Slurm as a job that is requeued until the run is finished."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
  python launchers/submit.py --config configs/quickstart.yaml --cluster local --dry-run
      ask the cluster whether it can run the job, and print the job script
  python launchers/submit.py --config F --cluster C run.name=wide parallel.tensor=8 cluster.nodes=16
      submit; overrides change the run, those that begin with cluster. the cluster's file
  python launchers/submit.py --config F --cluster C --prepare-data 64
      prepare the data as a Slurm array of 64 tasks and a merge; a second time: what is missing
"""
MORE = """\
  python launchers/submit.py --config F --cluster C --phases-as-jobs
      a job for each phase, each of which waits until the one before has succeeded
  python launchers/submit.py --config F --cluster C --after 1234
      train when job 1234 (such as the merge of the data) has succeeded
  python launchers/submit.py --config F --cluster C --evaluate '--tasks perplexity,babilong --samples 50' \\
      checkpoint.keep_every_steps=1000
      a job of one rank for every 1,000th step's checkpoint and the last; results in RUN/evaluation/

After the run was given up, the same command continues it, without the nodes that were found bad.

exit codes: 0 submitted; 2 refused, nothing was written or submitted.  Those of the jobs are in docs/slurm.md.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import cluster_file, command_parser, config_file, number

    parser = command_parser("submit", __doc__, EXAMPLES, MORE, argv)
    add = parser.add_argument
    add("--config", type=config_file, required=True, metavar="FILE", help="YAML file that describes the run")
    add("--cluster", type=cluster_file, required=True, metavar="FILE", help="YAML file of the cluster")
    add("overrides", nargs="*", metavar="section.key=value", help="change single values of the files")
    add("--dry-run", action="store_true", help="print the job script and stop")
    add("--phases-as-jobs", action="store_true", help="one job for each phase, in a chain")
    add("--after", action="append", default=[], metavar="JOB", help="wait until JOB has succeeded")
    add("--evaluate", default="", metavar="'OPTIONS'",
        help="evaluate every kept checkpoint in a job, with these options of evaluate.py")  # fmt: skip
    add("--prepare-data", type=number, metavar="N", help="instead prepare the run's data in N tasks")
    options = parser.parse_intermixed_args(argv)
    if options.prepare_data is not None and options.prepare_data < 1:
        parser.error(f"--prepare-data: {options.prepare_data} must be at least 1")
    if bad := [job for job in options.after if not job.isdigit()]:
        parser.error(f"--after: {bad[0]} must be the number of a job")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse_arguments(argv)
    from launchers._cli import exit_code

    return exit_code(lambda: print("\n".join(submit(options))))


def submit(options: argparse.Namespace) -> list[str]:
    """Submit the run or its data preparation; return the lines to print.  Raises one of `BAD_INPUT`."""
    from training.cluster.profile import PREFIX, load_profile
    from training.cluster.script import RunJob
    from training.cluster.submission import SubmitOptions, submit_preparation, submit_run
    from training.config import load_config

    ours = [text for text in options.overrides if text.startswith(PREFIX)]
    theirs = tuple(text for text in options.overrides if not text.startswith(PREFIX))
    profile = load_profile(options.cluster, ours)
    config = load_config(options.config, theirs)
    job = RunJob(config, options.config.resolve(), theirs, Path.cwd())
    if options.prepare_data is not None:
        return submit_preparation(job, profile, options.prepare_data, options.dry_run)
    after, evaluate = tuple(options.after), tuple(shlex.split(options.evaluate))
    wish = SubmitOptions(options.phases_as_jobs, after, evaluate, options.dry_run)
    return submit_run(job, profile, wish)


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
