"""Write BABILong samples: exercises to train on, or samples to evaluate in the published form."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_prep import Tokenizer

FACTS = 100  # tokens of a sample's facts, about

EPILOG = """\
examples:
  python launchers/babilong.py --part train --tokenizer tokenizer.model --babi data/babi --background data/books \\
      --tasks qa1,qa2 --lengths 0k,1k,2k,4k --samples 10000 --output corpora/babilong
      corpora/babilong/1k/qa1.jsonl and so on, {"context": …, "question": …, "answer": …} a line, for
      launchers/prepare_data.py: a source of kind task for each length, whose weights in the phases' mixes are the
      curriculum (docs/evaluation.md shows a whole configuration).  Tasks are those of bAbI's *_train.txt
  python launchers/babilong.py --part test --tokenizer tokenizer.model --babi data/babi --background data/test-books \\
      --lengths 4k,128k,1M --samples 100 --output corpora/babilong-test
      corpora/babilong-test/qa1/4k.json and so on, for launchers/evaluate.py --released

Without --babi a simulator of our own tells the facts; without --background the text between them is documentation
strings of Python's standard library.  A question that stands with the same facts before it in both *_train.txt and
*_test.txt (or *_valid.txt) is left out of what is written, and counted.  Give other books for training than for tests.
exit codes: 0 written; 2 bad input"""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line; argparse itself leaves with code 2 when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python launchers/babilong.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--part", choices=("train", "test"), required=True, help="train: exercises; test: samples as published")
    add("--output", type=Path, required=True, metavar="FOLDER", help="where they go")
    tokens = parser.add_mutually_exclusive_group(required=True)
    tokens.add_argument("--tokenizer", type=Path, metavar="FILE", help="*.model or tokenizer.json that counts tokens")
    tokens.add_argument("--data", type=Path, metavar="FOLDER", help="instead: the tokenizer of prepared data")
    add("--tasks", default="qa1,qa2,qa3,qa4,qa5", metavar="NAME,…", help="default qa1 to qa5")
    add("--lengths", default="0k,1k,2k,4k", metavar="L,…", help="0k, 4k, 128k, 1M or tokens (default 0k,1k,2k,4k)")
    add("--samples", type=int, default=1000, metavar="N", help="of each task and length (default 1000)")
    add("--babi", metavar="FOLDER", help="bAbI's files; or hf:NAME")
    add("--background", nargs="+", default=[], metavar="PATH", help="books: *.txt files, folders or globs; or hf:NAME")
    add("--exact", action="store_true", help="train: every exercise as long as its length, not up to it")
    add("--seed", type=int, default=0, metavar="N", help="same seed, same text everywhere (default 0)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code."""
    options = parse_arguments(arguments)
    # Imports after the arguments: --help answers at once.
    from data_prep import DataError

    try:
        run(options)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    """Writes the files and prints what is in them. Raises DataError before anything is written."""
    from rich.console import Console
    from rich.progress import Progress

    from evaluation.babilong.background import open_background
    from evaluation.babilong.exercises import write_exercises
    from evaluation.babilong.generator import Generator
    from evaluation.babilong.lengths import tokens_of
    from evaluation.babilong.released import save_released
    from evaluation.babilong.sources import Generated
    from evaluation.babilong.tasks import find_tasks
    from evaluation.options import check_positive, parse_lengths

    check_positive(samples=options.samples)
    tasks = [task.name for task in find_tasks(options.tasks.split(","))]
    lengths = parse_lengths(options.lengths)
    generator = Generator(open_background(options.background), tokenizer(options), options.seed, options.part)
    source = Generated(generator, options.babi)
    for task in tasks:
        source.check(task, lengths[0])
    console = Console(soft_wrap=True)
    with Progress(console=console) as progress:
        total = len(tasks) * options.samples * sum(tokens_of(length) + FACTS for length in lengths)
        bar = progress.add_task("writing", total=total)
        if options.part == "train":
            written = write_exercises(
                source, options.output, tasks, lengths, options.samples, options.exact,
                lambda tokens: progress.advance(bar, tokens + FACTS),
            )  # fmt: skip
            for name, count in written.items():
                console.print(f"{options.output / name}: {count:,} exercises")
        else:
            for task in tasks:
                for length in lengths:
                    samples = list(source.samples(task, length, options.samples))
                    if not samples:
                        console.print(f"{task} {length}: no question's facts fit into it")
                        continue
                    progress.advance(bar, options.samples * (tokens_of(length) + FACTS))
                    console.print(f"{save_released(samples, options.output)}: {len(samples):,} samples")
    for task, count in source.shared.items():
        console.print(f"{task}: {source.splits[task]} file, {count:,} questions left out that the other files have too")


def tokenizer(options: argparse.Namespace) -> "Tokenizer":
    from data_prep import PreparedFolder, load_tokenizer

    return load_tokenizer(options.tokenizer) if options.tokenizer else PreparedFolder(options.data).tokenizer()


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.exit(main(sys.argv[1:]))
