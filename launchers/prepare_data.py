"""Documents to a folder of token shards: `python launchers/prepare_data.py --config FILE`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from data_prep import DataConfig

_EXAMPLES = """\
examples:
  python launchers/prepare_data.py --config configs/quickstart.yaml
      makes the folder that the run trains on; done before with the same settings, it returns at once
  python launchers/prepare_data.py --config configs/quickstart.yaml \\
      data.path=data/small data.prepare.max_bytes=5000000
      the same from a sample of 5 MB a source, in another folder
  python launchers/prepare_data.py --config configs/quickstart.yaml data.prepare.on_error=skip
      counts and reports damaged documents where it would stop at the first
  python launchers/prepare_data.py --config configs/quickstart.yaml --verify
      reads every shard of the folder again and compares checksums

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

exit codes: 0 done, 2 bad input and nothing written, anything else a failure"""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line; argparse itself leaves with code 2 when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python launchers/prepare_data.py",
        description="Read documents, train or load a tokenizer, and write token shards on all cores.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file of the run")
    parser.add_argument("--verify", action="store_true", help="check an existing folder instead of making one")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace FILE's")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code."""
    from training.config import load_config
    from training.errors import BAD_INPUT

    options = parse_arguments(arguments)
    try:
        run(load_config(options.config, options.overrides).data, options.verify)
    except BAD_INPUT as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(data: "DataConfig", verify: bool) -> None:
    """Makes or verifies the folder `data.path` and prints what is in it. Raises DataError."""
    from data_prep import DataError, Manifest, prepare
    from data_prep.progress import print_summary

    console = Console()
    if verify:
        manifest = Manifest.load(data.path)
        manifest.verify_checksums(data.path)
        print_summary(console, manifest, data.path)
        console.print(f"{data.path}: {len(manifest.shards)} shards and the tokenizer are as they were written")
        return
    if data.prepare is None:
        raise DataError("data.prepare is missing; say in it what to read (see --help)")
    prepare(data.prepare, data.path, console)
    console.print(f"data is in {data.path}")


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.exit(main(sys.argv[1:]))
