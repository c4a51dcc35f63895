"""BABILong: does a memory recall?  Every kind of memory and two Llamas, at equal parameters and tokens.

    python experiments/babilong.py --babi BABI --background BOOKS --work FOLDER
    python experiments/babilong.py --size gpu …                   one CUDA device, all kinds side by side
    python experiments/babilong.py --kinds delta rmt --seeds 0 …

Rows of exercises are made while the models train: bAbI's training facts (names exchanged) and simulated ones, questions
of every kind a story answers after any fact, book sentences between them in the last stage.  Questions to evaluate with
are those of bAbI's held-out files, hidden in every fifth book, which no training row is made of.
A run that was stopped goes on by the same command (on a CPU, from its last evaluation).
"""

import argparse
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_prep.tokenizer import train_sentencepiece  # noqa: E402
from evaluation.babilong.background import open_background  # noqa: E402
from evaluation.babilong.generator import Generator  # noqa: E402
from evaluation.babilong.randomness import Keyed  # noqa: E402
from evaluation.babilong.sources import Generated  # noqa: E402
from experiments.babilong_parts.kinds import KINDS, SEGMENTS, Shape  # noqa: E402
from experiments.babilong_parts.race import Entry, Racer, described, open_log, race  # noqa: E402
from experiments.babilong_parts.rows import Feed, Places  # noqa: E402
from experiments.babilong_parts.samples import Cell, make_cells  # noqa: E402
from experiments.babilong_parts.stories import TASKS  # noqa: E402

SIZES = {
    "cpu": Shape(2048, 64, 4, heads=4, memory_heads=2, slots=64, row_length=1024),
    "gpu": Shape(2048, 256, 4, heads=4, memory_heads=4, slots=64, row_length=1024),
}


def main() -> None:
    options = parse_arguments()
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if options.size == "gpu" else "cpu")
    options.work.mkdir(parents=True, exist_ok=True)
    books = sorted(options.background.glob("*.txt"))
    held_out = tuple(str(path) for index, path in enumerate(books) if index % 5 == 4)
    tokenizer = options.work / "tokenizer.model"
    if not tokenizer.is_file():
        train_sentencepiece(
            tokenizer_texts(options.babi, [str(p) for p in books if str(p) not in held_out]), 2048, tokenizer
        )
    places = Places(options.babi, tuple(str(p) for p in books if str(p) not in held_out), tokenizer)
    began = time.monotonic()
    deadline = began + 60 * options.minutes
    log = open_log(options.work / "log.jsonl")
    shape = SIZES[options.size]
    if options.hidden:
        shape = Shape(
            shape.vocab_size,
            options.hidden,
            options.layers,
            options.hidden // 64,
            options.hidden // 64,
            64,
            shape.row_length,
        )
    racers = [Racer(entry, shape, options.batch, options.steps, device, options.work) for entry in entries(options)]
    for racer in racers:
        racer.resume()
        log(described(racer))
    feed = Feed(places, 0, options.batch, shape.row_length, options.workers, ahead=2 * options.workers, keep=10**6)
    held = dict(held_cells(options, [("0k", 200)], held_out, tokenizer))
    log({"seconds to begin": time.monotonic() - began})
    later = ThreadPoolExecutor(1).submit(lambda: list(by_length(options, held_out, tokenizer)))
    race(racers, feed, {k.partition("@")[0]: v for k, v in held.items()}, log, options.every, deadline)
    feed.close()
    for length, samples in later.result():
        for racer in racers:
            if racer.learner.step:
                start = time.monotonic()
                log(
                    {
                        "entry": racer.entry.name,
                        "length": length,
                        **racer.measure(samples),
                        "took": time.monotonic() - start,
                    }
                )
    for racer in racers:
        weights = {name: value.detach().half().cpu() for name, value in racer.learner.net.named_parameters()}
        torch.save(weights, options.work / f"{racer.entry.name}.half.pt")


def entries(options: argparse.Namespace) -> list[Entry]:
    """The models of this call: KIND[+sparse][:segment[:peak]]."""
    found = []
    for text in options.kinds:
        name, *rest = text.split(":")
        kind, _, sparse = name.partition("+")
        if kind not in KINDS:
            sys.exit(f"--kinds: {kind!r} is no kind; known are {', '.join(KINDS)}")
        segment = int(rest[0]) if rest else SEGMENTS[kind][0]
        peaks = [float(rest[1])] if len(rest) > 1 else options.peaks
        found += [Entry(kind, segment, peak, seed, bool(sparse)) for peak in peaks for seed in options.seeds]
    return found


def tokenizer_texts(babi: Path, books: list[str]) -> Iterable[str]:
    """Facts, questions and answers of every task beside as much of the training books."""
    source = Generated(Generator(None, None, 0, "train"), str(babi))  # type: ignore[arg-type]
    questions = chain.from_iterable(islice(source.questions(task), 1000) for task in TASKS)
    facts = [" ".join((*question.facts, question.question, question.answer)) for question in questions]
    return facts + list(islice(open_background(books).sentences(Keyed("tokenizer", 0), 100_000), 20_000))


def held_cells(options, lengths, books, tokenizer):  # type: ignore[no-untyped-def]
    cells = [Cell(task, length, count) for length, count in lengths for task in TASKS]
    for cell, asked in make_cells(cells, options.babi, books, tokenizer, options.workers):
        yield f"{cell.task}@{cell.length}", asked


def by_length(options, books, tokenizer):  # type: ignore[no-untyped-def]
    lengths = [(name, int(count)) for name, _, count in (text.partition(":") for text in options.lengths)]
    together: dict[str, dict] = {}
    for name, asked in held_cells(options, lengths, books, tokenizer):
        task, _, length = name.partition("@")
        together.setdefault(length, {})[task] = asked
        if len(together[length]) == len(TASKS):
            yield length, together.pop(length)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--babi", type=Path, required=True)
    parser.add_argument("--background", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/babilong"))
    parser.add_argument("--size", choices=list(SIZES), default="cpu")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--peaks", nargs="+", type=float, default=[1e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=10**6)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=0)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lengths", nargs="+", default=["0k:100", "1k:100", "2k:100", "4k:100"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
