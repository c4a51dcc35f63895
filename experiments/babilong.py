"""BABILong: does a memory recall?  Every kind of memory and two Llamas, at equal parameters and tokens.

    python experiments/babilong.py --babi BABI --background BOOKS --work FOLDER
    python experiments/babilong.py --size gpu --workers 8 --batch 8 …    one CUDA device, all kinds side by side
    python experiments/babilong.py --kinds delta+sparse rmt:128:3e-4 …   KIND[+sparse][+spanN][:SEGMENT[:LEARNING RATE]]

Rows of exercises are made while the models train: bAbI's training facts (names exchanged) and simulated ones, questions
of every kind a story answers after any fact (of qa4 one a story), book sentences between them in the last stage.
Questions to evaluate with are those of bAbI's held-out files, hidden in every fifth book, which no training row is made
of.
On a CPU a run that was stopped goes on by the same command, from its last evaluation.  Every line of what was measured
is in FOLDER/log.jsonl.
"""

import argparse
import hashlib
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.errors import DataError
from data_prep.tokenizers.tokenizer import train_sentencepiece
from evaluation.babilong.background import open_background
from evaluation.babilong.dense import TASKS
from evaluation.babilong.generator import Generator
from evaluation.babilong.lengths import tokens_of
from evaluation.babilong.randomness import Keyed
from evaluation.babilong.recipe import Places
from evaluation.babilong.sources import Generated
from experiments.babilong_parts.folder import Log, keep_settings, measured, open_log
from experiments.babilong_parts.kinds import KINDS, LLAMAS, SETTINGS, Kind, Shape
from experiments.babilong_parts.measuring import Asked
from experiments.babilong_parts.race import Entry, Racer, described, race
from experiments.babilong_parts.rows import Feed
from experiments.babilong_parts.samples import Cell, make_cells
from experiments.babilong_parts.training import save_weights

SIZES = {
    "cpu": Shape(2048, 64, 4, heads=4, memory_heads=2, slots=64, row_length=1024),
    "gpu": Shape(2048, 256, 4, heads=4, memory_heads=4, slots=64, row_length=1024),
}
SENTENCES = 20  # that retrieval gives a Llama to read, as in BABILong's own baseline (arXiv 2406.10149)
Cells = list[tuple[str, dict[str, list[Asked]]]]  # of each length: task -> questions
LENGTHS = "0k:100 1k:40 2k:40 4k:40 8k:40 16k:40 32k:20 64k:10 128k:8"


def main() -> int:
    options = parse_arguments()
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if options.size == "gpu" else "cpu")
    began = time.monotonic()
    log = open_log(options.work / "log.jsonl")
    log({"command": sys.argv, "began": time.strftime("%Y-%m-%d %H:%M"), "machine": machine(device)})
    train_tokenizer(options.tokenizer, options.babi, options.books)
    (_, held), *_ = cells(options, [("0k", 200)], skip=max(count for _, count in options.lengths))
    lost = set[str]()
    with ThreadPoolExecutor(1) as beside:
        plain = beside.submit(lambda: list(cells(options, options.lengths)))
        llamas = any(len(readings(entry)) > 1 for entry in options.entries)
        wanted = options.lengths if llamas else []
        short = beside.submit(lambda: list(cells(options, wanted, retrieved=SENTENCES)))
        for together in groups(options):
            racers = [
                Racer(e, SIZES[options.size], options.batch, options.steps, device, options.work) for e in together
            ]
            lost |= train(racers, options, held, log, began + 60 * options.minutes)
            for racer in racers:
                if racer.entry.name not in lost:
                    measure(racer, plain, short, log)
    return 1 if lost else 0


def groups(options: argparse.Namespace) -> Iterator[list[Entry]]:
    """Entries that train side by side; without those whose every length is in the log with as many samples."""
    done = measured(options.work / "log.jsonl")

    def missing(entry: Entry) -> bool:
        names = [entry.name + suffix for suffix in readings(entry)]
        return any((name, *wanted) not in done for name in names for wanted in options.lengths)

    left = iter([entry for entry in options.entries if missing(entry)])
    while together := list(islice(left, options.side_by_side)):
        yield together


def train(
    racers: list[Racer], options: argparse.Namespace, held: dict[str, list[Asked]], log: Log, deadline: float
) -> set[str]:
    """Train to the last step and keep states and weights.  Returns the names of those that failed."""
    for racer in racers:
        racer.resume()
        log(described(racer))
    places = Places(options.tokenizer, str(options.babi), options.books)
    length = SIZES[options.size].row_length
    feed = Feed(places, 0, options.batch, length, options.workers, 2 * options.workers, options.keep)
    try:
        lost = race(racers, feed, held, log, options.every, deadline)
    finally:
        feed.close()
    for racer in racers:
        if racer.entry.name not in lost:
            racer.save()
            save_weights(racer.learner.net, options.work / f"{racer.entry.name}.safetensors")
    return lost


def readings(entry: Entry) -> tuple[str, ...]:
    """How a model is measured: on the whole text, and a Llama also on the sentences that retrieval finds."""
    return ("", "+rag") if entry.kind in LLAMAS else ("",)


def measure(racer: Racer, plain: Future[Cells], short: Future[Cells], log: Log) -> None:
    """Accuracy at every length; a Llama's also with retrieval, as an entry of its own in the log."""
    for suffix in readings(racer.entry):
        name = racer.entry.name + suffix
        if suffix:
            log(described(racer) | {"entry": name, "kind": racer.entry.kind + suffix, "sentences": SENTENCES})
        for length, samples in (short if suffix else plain).result():
            count = {"samples": min(map(len, samples.values()))}
            log({"entry": name, "length": length, **count, **racer.measure(samples)})


def machine(device: torch.device) -> str:
    """What the numbers were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = os.cpu_count()
    return f"{platform.processor() or platform.machine()}, {cores} cores, {torch.get_num_threads()} threads"


def parse_arguments() -> argparse.Namespace:
    """What was typed, checked: exits with code 2 before anything is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--babi", type=Path, required=True, metavar="FOLDER", help="bAbI's files of qa1 to qa5")
    parser.add_argument("--background", type=Path, required=True, metavar="FOLDER", help="books as *.txt, five or more")
    parser.add_argument("--work", type=Path, default=Path("runs/babilong"), metavar="FOLDER", help="what is made")
    parser.add_argument("--size", choices=list(SIZES), default="cpu", help="cpu: 0.4 M parameters; gpu: 5 M")
    parser.add_argument(
        "--kinds", nargs="+", default=["delta+sparse", *KINDS], metavar="KIND", help="default: all, one setting each"
    )
    parser.add_argument("--peaks", nargs="+", type=float, default=[1e-3], help="learning rates of kinds that name none")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="of the initial weights")
    parser.add_argument("--steps", type=int, default=12_000, help="updates a model")
    parser.add_argument("--batch", type=int, default=4, help="rows of 1,024 tokens a step")
    parser.add_argument("--every", type=int, default=500, help="steps between evaluations at 0K")
    parser.add_argument(
        "--minutes", type=float, default=1e6, help="on a GPU: end training after so long, for all alike"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that make rows")
    parser.add_argument(
        "--side-by-side",
        type=int,
        metavar="N",
        help="models that train at once (default: on a CPU one after the other, on a GPU all)",
    )
    parser.add_argument("--lengths", nargs="+", default=LENGTHS.split(), metavar="LENGTH:SAMPLES")
    options = parser.parse_args()
    try:
        check(options)
    except DataError as error:
        parser.exit(2, f"{error}\n")
    return options


def check(options: argparse.Namespace) -> None:
    """Fill in what follows from the options.  Raises `DataError` naming the option, its value and the way out."""
    missing = [f"{task}_train.txt" for task in TASKS if not (options.babi / f"{task}_train.txt").is_file()]
    if missing:
        raise DataError(f"--babi: {options.babi} has no {', '.join(missing)}; name the folder with bAbI's en-10k files")
    options.books, options.held_out = split_books(options.background)
    if options.size == "gpu" and not torch.cuda.is_available():
        raise DataError("--size gpu: this machine has no CUDA device; use --size cpu")
    options.tokenizer = options.work / "tokenizer.model"
    options.entries = [entry for text in options.kinds for entry in entries(text, options.peaks, options.seeds)]
    options.lengths = [length_and_count(text) for text in options.lengths]
    cores = os.cpu_count() or 1
    if options.side_by_side is None:
        options.side_by_side = 1 if options.size == "cpu" else len(options.entries)
    if options.side_by_side < 1 or (options.size == "cpu" and options.side_by_side > cores):
        raise DataError(f"--side-by-side: is {options.side_by_side}; this machine has cores for 1 to {cores} models")
    keep_settings(
        options.work,
        {
            "size": options.size,
            "steps": options.steps,
            "batch": options.batch,
            "every": options.every,
            "babi": fingerprint(sorted(options.babi.glob("qa[1-5]_*.txt"))),
            "background": fingerprint(sorted(options.background.glob("*.txt"))),
        },
    )
    options.keep = 10**6 if options.size == "gpu" else 4  # blocks of rows in memory


def length_and_count(text: str) -> tuple[str, int]:
    """LENGTH:SAMPLES as typed.  Raises `DataError` where it is none."""
    length, _, count = text.partition(":")
    tokens_of(length)
    if not count.isdecimal() or int(count) == 0:
        raise DataError(f"--lengths: {text!r} has no number of samples; write for example 4k:40")
    return length, int(count)


def split_books(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Books to train on, and those to evaluate in.  Raises `DataError` when there are fewer than five."""
    books = sorted(folder.glob("*.txt"))
    if len(books) < 5:
        raise DataError(f"--background: {folder} has {len(books)} *.txt files, but every fifth is held out")
    train = tuple(str(path) for index, path in enumerate(books) if index % 5 != 4)
    return train, tuple(str(path) for path in books[4::5])


def entries(text: str, peaks: list[float], seeds: list[int]) -> list[Entry]:
    """The models that KIND[+sparse][+spanN][:SEGMENT[:LEARNING RATE]] stands for."""
    name, *rest = text.split(":")
    wanted, *more = name.split("+")
    found: list[Kind] = [kind for kind in KINDS if kind == wanted]
    spans = [int(word[4:]) for word in more if word[:4] == "span" and word[4:].isdigit()]
    sparse = "sparse" in more
    if not found or len(more) != len(spans) + sparse or (sparse and wanted != "delta"):
        raise DataError(
            f"--kinds: {text!r} names no kind; known are {', '.join(KINDS)}, delta+sparse, and each with +span2 or the "
            "like: segments that attention sees"
        )
    segment, span = SETTINGS[found[0]]
    if rest:
        segment, span = int(rest[0]), 1
    rates = [float(rest[1])] if len(rest) > 1 else peaks
    return [Entry(found[0], segment, peak, seed, sparse, max(spans, default=span)) for peak in rates for seed in seeds]


def train_tokenizer(path: Path, babi: Path, books: Sequence[str]) -> None:
    """2,048 pieces, of facts, questions and answers of every task beside as much of the training books."""
    if path.is_file():
        return
    source = Generated(Generator(None, None, 0, "train"), str(babi))  # type: ignore[arg-type]
    questions = chain.from_iterable(islice(source.questions(task), 1000) for task in TASKS)
    facts = (" ".join((*question.facts, question.question, question.answer)) for question in questions)
    sentences = open_background(list(books)).sentences(Keyed("tokenizer", 0), 100_000)
    texts: Iterable[str] = chain(facts, islice(sentences, 20_000))
    train_sentencepiece(texts, 2048, path)


def cells(
    options: argparse.Namespace, lengths: list[tuple[str, int]], skip: int = 0, retrieved: int | None = None
) -> Iterator[tuple[str, dict[str, list[Asked]]]]:
    """For each length, every task's questions after the first `skip`: what judges a stage is in no result."""
    wanted = [Cell(task, length, count, skip, retrieved) for length, count in lengths for task in TASKS]
    made = make_cells(wanted, options.babi, options.held_out, options.tokenizer, options.workers)
    for length, _ in lengths:
        yield length, {cell.task: asked for cell, asked in islice(made, len(TASKS))}


def fingerprint(paths: Sequence[Path]) -> str:
    """Names and sizes of the files that material is made of, as one short text."""
    listed = " ".join(f"{path.name}:{path.stat().st_size}" for path in paths)
    return f"{len(paths)} files, {hashlib.sha256(listed.encode()).hexdigest()[:12]}"


if __name__ == "__main__":
    sys.exit(main())
