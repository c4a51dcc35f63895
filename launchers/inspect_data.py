"""Show the content of a run's prepared data: sources, lengths, single samples."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from training.config import RunConfig

EXAMPLES = """\
  python launchers/inspect_data.py --config configs/quickstart.yaml
      documents, tokens, lengths, the share of every source in each phase; writes lengths.png
  python launchers/inspect_data.py --config configs/quickstart.yaml --sample 1234 --sample 1235
      text of samples of the run, where documents begin, and (dim) what is not learned
  python launchers/inspect_data.py --config configs/quickstart.yaml --split valid --sample 0
      the first validation sample
"""
MORE = "exit codes: 0 done; 2 bad input; anything else a failure"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import command_parser, config_file, number, path

    parser = command_parser("inspect_data", __doc__, EXAMPLES, MORE, argv)
    add = parser.add_argument
    add("--config", type=config_file, required=True, metavar="FILE", help="YAML file of the run")
    add("--sample", type=number, action="append", metavar="G", help="show sample G (repeatable)")
    add("--split", choices=["train", "valid"], default="train", help="which documents (default train)")
    add("--histogram", type=path, default=Path("lengths.png"), metavar="PNG",
        help="where the picture goes (default lengths.png)")  # fmt: skip
    add("overrides", nargs="*", metavar="section.key=value", help="settings that replace FILE's")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse_arguments(argv)
    from launchers._cli import exit_code
    from training.config import load_config

    return exit_code(lambda: run(load_config(options.config, options.overrides), options, Console()))


def run(config: "RunConfig", options: argparse.Namespace, console: Console) -> None:
    """Print samples, or a summary of the data with a histogram of lengths.  Raises `DataError`."""
    from data_prep import PreparedFolder
    from data_prep.preparation.progress import print_summary
    from data_prep.shards.inspection import document_lengths, length_table, mix_table, sample_panel, write_histogram
    from training.errors import output_folder
    from training.schedule import position
    from training.streams import open_stream

    if options.sample:
        stream = open_stream(config, options.split)
        tokenizer = stream.folder.tokenizer()
        for index in options.sample:
            console.print(sample_panel(stream, tokenizer, index))
        return
    folder = PreparedFolder(config.data.path, config.data.cache)
    print_summary(console, folder.manifest, config.data.path)
    lengths = document_lengths(folder, options.split)
    console.print(length_table(lengths))
    output_folder(options.histogram.parent, "--histogram")
    write_histogram(lengths, options.histogram)
    console.print(f"histogram: {options.histogram}")
    phases, step = [], 0
    for phase in config.phases:
        ends = [position(config.phases, config.data.sequence_length, at).samples for at in (step, step + phase.steps)]
        phases.append((phase.name, ends[0], ends[1]))
        step += phase.steps
    console.print(mix_table(open_stream(config, "train"), phases))


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
