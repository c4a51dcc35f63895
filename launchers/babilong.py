"""Write BABILong samples: exercises to train on, or published samples to evaluate."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from evaluation.babilong.recipe import Form, Recipe

FACTS = 100  # approximate number of tokens of a sample's facts, for the progress bar
FORMS = ("single", "story", "dense")

EXAMPLES = """\
  python launchers/babilong.py --part train --data corpora/babilong --babi data/babi \\
      --background data/books --form dense --permute --simulated 0.5 --lengths short,0k,1300 \\
      --samples 20000 --output corpora/babilong/exercises
      exercises for configs/babilong.yaml: {"turns": [{"context": …, "question": …, …}, …]} a line
  python launchers/babilong.py --part test --data data/mine --babi data/babi \\
      --background data/test-books --lengths 4k,128k,1M --output corpora/babilong-test
      samples for launchers/evaluate.py --released
"""
MORE = """\
Training exercises are LENGTH/TASK.jsonl in the output folder: sources of kind task, whose weights in the phases' mixes
are the curriculum.  Tasks are those of bAbI's *_train.txt.  Of the length short are the first 2 to 5 facts of stories,
of 0k whole stories, of 1300 whole stories among book sentences, together up to 1,000 tokens (300 of every length are
kept for question and prompt).  A story that is too long for the longest length is left out.
Test samples are corpora/babilong-test/qa1/4k.json and so on.

  … --form dense=3,single=1 --permute --simulated 0.5 --noise 0=0.45,200=0.15,600=0.4 --output corpora/babilong
      corpora/babilong/mixed/qa1.jsonl and so on: stories with questions of every kind after any fact, a quarter with
      one question at the end; half of the facts from files with names, rooms and objects exchanged, half simulated;
      no book sentences for 45 %, 0 to 200 tokens of them for 15 %, 0 to 600 for 40 %

Without --babi a simulator of this project makes the facts; without --background the text between them is documentation
strings of Python's standard library.  A question that occurs with the same facts in both *_train.txt and *_test.txt (or
*_valid.txt) is left out, and such questions are counted.  Use different books for training and for tests.

exit codes: 0 written; 2 bad input.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse ends the process with exit code 2 when it is wrong."""
    from launchers._cli import command_parser, number, path, place, seed

    parser = command_parser("babilong", __doc__, EXAMPLES, MORE, argv)
    add, more = parser.add_argument, parser.more
    add("--part", choices=("train", "test"), required=True, help="train: exercises; test: samples as published")
    add("--output", type=path, required=True, metavar="FOLDER", help="where they go")
    tokens = parser.add_mutually_exclusive_group(required=True)
    tokens.add_argument("--data", type=path, metavar="FOLDER", help="prepared data, whose tokenizer counts tokens")
    tokens.add_argument("--tokenizer", type=path, metavar="FILE", help="instead: *.model or tokenizer.json")
    add("--tasks", default="qa1,qa2,qa3,qa4,qa5", metavar="NAME,…", help="default qa1 to qa5")
    long = parser.add_mutually_exclusive_group()
    long.add_argument(
        "--lengths", default="0k,1k,2k,4k", metavar="L,…", help="0k, 4k, 1M, tokens; train: short (default 0k,1k,2k,4k)"
    )
    long.add_argument("--noise", metavar="N=SHARE,…", help=more("train, instead: 0 to N tokens of books for a share"))
    add("--samples", type=number, default=1000, metavar="N", help="of each task and length (default 1000)")
    add("--babi", type=place, metavar="FOLDER", help="bAbI's files; or hf:NAME")
    add("--background", type=place, nargs="+", default=[], metavar="PATH",
        help="books: *.txt files, folders or globs; or hf:NAME")  # fmt: skip
    add("--form", default="single", metavar="F=SHARE,…", help=more("train: single, story, dense (default single)"))
    add("--simulated", type=float, metavar="SHARE",
        help=more("train: of the simulator's stories (default 0; 1 without --babi)"))  # fmt: skip
    add("--permute", action="store_true",
        help=more("train: exchange names, rooms and objects within a story of the files"))  # fmt: skip
    add("--asked", type=float, default=0.5, metavar="SHARE",
        help=more("train: dense: of facts with a question after them"))  # fmt: skip
    add("--workers", type=number, metavar="N",
        help=more("train: processes (default all cores); never changes the output"))  # fmt: skip
    add("--exact", action="store_true", help=more("train: every exercise as long as its length, not up to it"))
    add("--seed", type=seed, default=0, metavar="N", help=more("same seed, same text (default 0)"))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse_arguments(argv)
    from launchers._cli import exit_code

    return exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Write the files and print what is in them.  Raises `DataError` before anything is written."""
    from data_prep import DataError
    from evaluation.babilong.recipe import SHORT
    from evaluation.babilong.tasks import find_tasks
    from evaluation.options import check_positive, parse_lengths

    check_positive(samples=options.samples)
    tasks = [task.name for task in find_tasks(options.tasks.split(","))]
    names = [name.strip() for name in options.lengths.split(",")]
    short = (SHORT,) if SHORT in names and options.part == "train" else ()
    lengths = short + parse_lengths(",".join(name for name in names if name not in short))
    if options.part == "train":
        if options.permute and not options.babi:
            raise DataError("--permute: exchanges names in the stories of bAbI's files; pass --babi, or leave it out")
        write_train(options, tasks, lengths)
    else:
        given = {"--noise": options.noise, "--simulated": options.simulated, "--workers": options.workers}
        given |= {"--permute": options.permute, "--form": options.form != "single", "--exact": options.exact}
        for option in (option for option, value in given.items() if value not in (None, False)):
            raise DataError(
                f"{option}: is for --part train only; leave it out, test samples have one question at the end"
            )
        write_test(options, tasks, lengths)


def write_train(options: argparse.Namespace, tasks: list[str], lengths: tuple[str, ...]) -> None:
    """Write exercises to train on, in several processes."""
    from rich.console import Console
    from rich.progress import Progress

    from data_prep.preparation.tokenize import available_cores
    from evaluation.babilong.exercises import MIXED, write_exercises
    from evaluation.babilong.recipe import SHORT, Places, open_maker
    from evaluation.options import check_positive

    workers = available_cores() if options.workers is None else options.workers
    check_positive(workers=workers)
    lengths = (MIXED,) if options.noise else lengths
    recipe = recipe_of(options, tasks)
    noisy = any(recipe.noise) if options.noise else not set(lengths) <= {SHORT, "0k"}
    places = Places(tokenizer_path(options), options.babi, tuple(options.background) if noisy else None)
    console = Console(soft_wrap=True)
    with Progress(console=console) as progress:
        bar = progress.add_task("writing", total=len(tasks) * len(lengths) * options.samples)
        written = write_exercises(
            places, recipe, options.output, lengths, options.samples, options.exact, options.seed, workers,
            lambda exercises: progress.advance(bar, exercises),
        )  # fmt: skip
    for name, count in written.items():
        console.print(f"{options.output / name}: {count:,} exercises")
    for task, count in open_maker(places, recipe).material.left_out.items():
        console.print(f"{task}: train file, {count:,} questions left out that the other files have too")


def recipe_of(options: argparse.Namespace, tasks: list[str]) -> "Recipe":
    """Return the recipe of the exercises.  Raises `DataError` for wrong options."""
    from data_prep import DataError
    from evaluation.babilong.recipe import Recipe
    from evaluation.options import parse_shares

    forms = parse_shares("--form", options.form)
    noise = parse_shares("--noise", options.noise or "0")
    if unknown := [form for form in forms if form not in FORMS]:
        raise DataError(f"--form: {unknown[0]!r} is not one of {', '.join(FORMS)}")
    if wrong := [most for most in noise if not most.isdecimal()]:
        raise DataError(f"--noise: {wrong[0]!r} is not a number of tokens; write 0=0.5,600=0.5")
    simulated = (0.0 if options.babi else 1.0) if options.simulated is None else options.simulated
    return Recipe(
        tuple(tasks),
        cast("dict[Form, float]", forms),
        simulated,
        options.permute,
        {int(n): s for n, s in noise.items()},
        options.asked,
    )  # type: ignore[arg-type]  # forms are checked above


def write_test(options: argparse.Namespace, tasks: list[str], lengths: tuple[str, ...]) -> None:
    """Write test samples in the published format."""
    from rich.console import Console
    from rich.progress import Progress

    from data_prep import load_tokenizer
    from evaluation.babilong.background import open_background
    from evaluation.babilong.generator import Generator
    from evaluation.babilong.lengths import tokens_of
    from evaluation.babilong.released import save_released
    from evaluation.babilong.sources import Generated

    generator = Generator(
        open_background(options.background), load_tokenizer(tokenizer_path(options)), options.seed, options.part
    )
    source = Generated(generator, options.babi)
    for task in tasks:
        source.check(task, lengths[0])
    console = Console(soft_wrap=True)
    with Progress(console=console) as progress:
        total = len(tasks) * options.samples * sum(tokens_of(length) + FACTS for length in lengths)
        bar = progress.add_task("writing", total=total)
        for task in tasks:
            for length in lengths:
                samples = list(source.samples(task, length, options.samples))
                if not samples:
                    console.print(f"{task} {length}: no sample, because the facts of no question fit into this length")
                    continue
                progress.advance(bar, options.samples * (tokens_of(length) + FACTS))
                console.print(f"{save_released(samples, options.output)}: {len(samples):,} samples")
    for task, count in source.shared.items():
        console.print(f"{task}: {source.splits[task]} file, {count:,} questions left out that the other files have too")


def tokenizer_path(options: argparse.Namespace) -> Path:
    """Return the file of the tokenizer that counts tokens."""
    from data_prep import PreparedFolder

    return options.tokenizer or PreparedFolder(options.data).tokenizer_path


if __name__ == "__main__":
    # The repository's packages are importable from a checkout that is not installed.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from launchers._cli import run as run_command

    sys.exit(run_command(main))
