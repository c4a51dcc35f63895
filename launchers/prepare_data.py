"""Turn documents into a folder of token shards, on all cores."""

import argparse
import errno
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from data_prep import DataConfig

EXAMPLES = """\
  python launchers/prepare_data.py --config configs/quickstart.yaml
      make the folder that the run trains on; a folder with the same settings is kept
  python launchers/prepare_data.py --config configs/quickstart.yaml \\
      data.path=data/small data.prepare.max_bytes=5000000
      the same from a sample of 5 MB a source, in another folder
  python launchers/prepare_data.py --config configs/quickstart.yaml --verify
      read every shard of the folder again and compare checksums
"""
MORE = """\
  python launchers/prepare_data.py --config configs/quickstart.yaml data.prepare.on_error=skip
      counts and reports damaged documents instead of stopping at the first
  python launchers/prepare_data.py --config F --plan
  sbatch --array=0-63 --wrap 'python launchers/prepare_data.py --config F --tasks 64 --task $SLURM_ARRAY_TASK_ID'
  python launchers/prepare_data.py --config F --merge
      the same on many machines that share a file system: the first command lists the input and trains the tokenizer,
      each process does its part of the tasks, and the last command merges them into the folder. After a kill, run the
      same command again; finished tasks are not repeated

  python launchers/prepare_data.py --config F --references --plan
  sbatch --array=0-63 --wrap \\
      'python launchers/prepare_data.py --config F --references --tasks 64 --task $SLURM_ARRAY_TASK_ID'
  python launchers/prepare_data.py --config F --references --merge
      after the data: the first command cuts documents into references and indexes them, the processes look up which
      reference each 64 tokens of the data retrieve, the last command writes the table that training reads. Without
      --references and steps, one command does all of this after the data

the config's data.prepare section says what to read:
  data:
    path: data/mine              # the folder to make
    sequence_length: 1024
    prepare:
      sources:
        - {kind: jsonl, path: corpus/*.jsonl.zst, text_field: text, name: web}
        - {kind: text, path: corpus/books}
      tokenizer: {vocab_size: 32000}     # or {path: tokenizer.json}
      valid_fraction: 0.01
    references:                    # for models with explicit memory; docs/references.md
      path: data/mine-references
      prepare:
        sources:
          - {kind: jsonl, path: wiki/*.jsonl.zst, name: wiki}

exit codes: 0 done; 1 the machine failed (disk full, a process killed): the same command continues; 2 bad input, no
folder was made.
"""
_NO_PREPARE = "data.prepare is missing; set the sources to read (see --help-all)"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import command_parser, config_file, number

    parser = command_parser("prepare_data", __doc__, EXAMPLES, MORE, argv)
    add = parser.add_argument
    add("--config", type=config_file, required=True, metavar="FILE", help="YAML file of the run")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--verify", action="store_true", help="check an existing folder instead of making one")
    steps.add_argument("--plan", action="store_true", help="only list the input and train the tokenizer")
    steps.add_argument(
        "--task", type=number, metavar="I", help="only tasks I, I + N, I + 2 N, … (I from 0; with --tasks)"
    )
    steps.add_argument("--merge", action="store_true", help="only merge the finished tasks into the folder")
    add("--tasks", type=number, metavar="N", help="processes that share the work (with --task)")
    add("--references", action="store_true", help="do the step for data.references instead of the data")
    add("overrides", nargs="*", metavar="section.key=value", help="settings that replace FILE's")
    options = parser.parse_intermixed_args(argv)
    if options.references and not (options.plan or options.merge or options.verify or options.task is not None):
        parser.error("--references goes with a step: --plan, --tasks N --task I, --merge or --verify")
    if (options.tasks is None) != (options.task is None):
        parser.error("--tasks N and --task I go together")
    if options.task is not None and not 0 <= options.task < options.tasks:
        parser.error(f"--task is {options.task}; with --tasks {options.tasks} it must be 0 to {options.tasks - 1}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse_arguments(argv)
    from launchers._cli import exit_code, say_error

    try:
        return exit_code(lambda: act(options))
    except (OSError, BrokenExecutor) as error:
        say_error(f"{failure(error)}; run the same command again, finished tasks are kept")
        return 1


def act(options: argparse.Namespace) -> None:
    """Do what the options ask for.  Raises `DataError` or `ConfigError` on bad input."""
    from training.config import load_config

    data = load_config(options.config, options.overrides).data
    if options.references:
        run_references_step(data, options)
    elif options.plan or options.merge or options.task is not None:
        run_step(data, options)
    else:
        run(data, options.verify)


def failure(error: Exception) -> str:
    """Return a message about a failure of the machine, with the way out."""
    if not isinstance(error, OSError):
        return "a worker process was killed, perhaps because memory was full: lower data.prepare.workers"
    where = f"{error.filename}: " if error.filename else ""
    free = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return f"{where}{error.strerror or error}{': free space or raise the limit' if free else ''}"


def run(data: "DataConfig", verify: bool) -> None:
    """Make or verify the folder `data.path`, and print what is in it.  Raises `DataError`."""
    from data_prep import DataError, PreparedFolder, prepare
    from data_prep.preparation.progress import print_summary
    from data_prep.references.prepare import prepare_references

    console = Console()
    if verify:
        folder = PreparedFolder(data.path, data.cache)
        folder.verify()
        print_summary(console, folder.manifest, data.path)
        console.print(f"{data.path}: {len(folder.manifest.shards)} shards and the tokenizer are undamaged")
        return
    if data.prepare is None:
        raise DataError(_NO_PREPARE)
    prepare(data.prepare, data.path, console, data.cache)
    console.print(f"data is in {data.path}")
    if data.references is not None and data.references.prepare is not None:
        prepare_references(data, console)


def run_step(data: "DataConfig", options: argparse.Namespace) -> None:
    """Do one step of a preparation that several processes share.  Raises `DataError`."""
    from data_prep import DataError
    from data_prep.preparation.prepare import Preparation

    if data.prepare is None:
        raise DataError(_NO_PREPARE)
    console = Console()
    preparation = Preparation(data.prepare, data.path, console, data.cache)
    finished = preparation.finished()
    if finished is not None:
        console.print(f"{data.path} is already prepared with these settings: {len(finished.shards)} shards")
        return
    with ExitStack() as stack:
        if options.merge:
            preparation.merge(preparation.existing_plan())
            console.print(f"data is in {data.path}")
            return
        pool = preparation.open_pool(stack)
        plan = preparation.plan(pool)
        if options.task is not None:
            preparation.run_tasks(plan, range(options.task, len(plan.tasks), options.tasks), pool)
            console.print(f"part {options.task} of {options.tasks} is done; when all are done, run --merge")
        else:
            console.print(f"{preparation.work}: {len(plan.tasks)} tasks, so at most as many processes (--tasks)")


def run_references_step(data: "DataConfig", options: argparse.Namespace) -> None:
    """Do one step of preparing references and neighbours, or verify them.  Raises `DataError`."""
    from data_prep import DataError, ReferenceStore
    from data_prep.references.prepare import ReferencePreparation

    console = Console()
    if options.verify:
        if data.references is None:
            raise DataError("data.references is missing; there is nothing to verify")
        store = ReferenceStore(data.references.path)
        store.verify()
        console.print(f"{store.folder}: {len(store):,} references are undamaged")
        return
    preparation = ReferencePreparation(data, console)
    if preparation.finished() is not None:
        console.print(f"{preparation.folder}: references and neighbours are already prepared with these settings")
        return
    if options.merge:
        preparation.merge()
        return
    with ExitStack() as stack:
        pool = preparation.open_pool(stack)
        if options.task is not None:
            preparation.run_tasks(preparation.existing_plan()[options.task :: options.tasks], pool)
            console.print(
                f"part {options.task} of {options.tasks} is done; when all are done, run --references --merge"
            )
        else:
            tasks = preparation.plan(pool)
            console.print(f"{preparation.folder}: {len(tasks)} tasks, so at most as many processes (--tasks)")


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
