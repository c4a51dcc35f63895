"""What does a model that recalls write, and what does it read when it answers?  Of the model kept with the results.

    python experiments/recalled.py --babi BABI --background BOOKS

It counts, over questions of qa1 in 1K tokens of books, how strongly the memory writes the tokens of facts and those of
books, and which tokens wrote what the memory reads before the answer.  It draws one short question.
A minute on one core.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep import Tokenizer, load_tokenizer
from data_prep.errors import DataError
from data_prep.files import replacing
from evaluation.babilong.background import open_background
from evaluation.babilong.generator import Generator, Sample
from evaluation.babilong.sources import Generated
from evaluation.babilong.templates import FINETUNED_LAYOUT, fill
from evaluation.interpret.plots import shown
from evaluation.interpret.reading import read
from evaluation.interpret.retrieval import retrieved
from experiments.babilong import split_books, train_tokenizer
from experiments.results_check import RESULTS, kept_model, read_log
from model import LanguageModel

BOOK, OTHER_FACT, SUPPORT, QUESTION = range(4)  # what a token belongs to
NAMES = ("books", "other facts", "the fact that answers", "the question")
QUESTIONS, LENGTH, DRAWN = 100, "1k", "90"


@dataclass(frozen=True)
class Seen:
    """One question as the model read it. L tokens, K blocks with memory.

    tokens: their texts; owner: [L] of BOOK … QUESTION; written: [K, L], strength of each token's write, mean over
    heads, 0..1; part: [K, L], each token's part in what the last token reads, a row's sum is 1; right: the answer is.
    """

    tokens: list[str]
    owner: np.ndarray
    written: np.ndarray
    part: np.ndarray
    right: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--babi", type=Path, required=True, metavar="FOLDER", help="bAbI's files of qa1 to qa5")
    parser.add_argument("--background", type=Path, required=True, metavar="FOLDER", help="the books of the results")
    parser.add_argument("--log", type=Path, default=RESULTS / "babilong-cpu.jsonl", help="the results' log")
    parser.add_argument("--output", type=Path, default=RESULTS / "recalled.png", help="the picture")
    options = parser.parse_args()
    try:
        books, held_out = split_books(options.background)
        entry, _ = read_log(options.log, [])
    except DataError as error:
        parser.exit(2, f"{error}\n")
    net = kept_model(entry, options.log)
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(Path(folder) / "tokenizer.model", options.babi, books)
        tokenizer = load_tokenizer(Path(folder) / "tokenizer.model")
    source = Generated(Generator(open_background(list(held_out)), tokenizer, 0, "test"), str(options.babi))
    every = [look(net, tokenizer, sample) for sample in source.samples("qa1", LENGTH, QUESTIONS)]
    print(json.dumps({"entry": entry.name, "questions": QUESTIONS, "length": LENGTH} | counted(every)))
    drawn = next(seen for seen in looks(net, tokenizer, source) if seen.right and BOOK in seen.owner)
    with replacing(options.output) as aside:
        FigureCanvasAgg(draw(drawn)).print_png(aside)
    print(options.output)
    return 0


def looks(net: LanguageModel, tokenizer: Tokenizer, source: Generated) -> Iterator[Seen]:
    for sample in source.samples("qa1", DRAWN, QUESTIONS):
        yield look(net, tokenizer, sample)


def look(net: LanguageModel, tokenizer: Tokenizer, sample: Sample) -> Seen:
    """Let the model read a sample's context and question, and keep what its memories recorded."""
    text = fill(FINETUNED_LAYOUT, sample.context, sample.question)
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    readings, logits = read(net, ids)
    (answer, *_) = tokenizer.encode(sample.answer)
    # the last token reads what the segments before its own have written
    before = (len(ids) - 1) // net.config.segment_length * net.config.segment_length
    written, part = np.zeros((2, len(readings), len(ids)))
    for row, reading in enumerate(readings):
        writes = {name: x[:before] for name, x in reading.writes.items()}
        weight = retrieved(reading.address[-1:], writes)[0].abs() * writes["content"].norm(dim=-1).T  # [H, U]
        strength = weight.sum(dim=0)
        part[row, :before] = strength / strength.sum().clamp(min=1e-12)
        strengths = reading.writes["strength"].mean(dim=(1, 2))  # of whole segments: the rest is not written
        written[row, : len(strengths)] = strengths
    owner = owners(tokenizer, sample, text, len(ids))
    return Seen([tokenizer.piece(i) for i in ids], owner, written, part, int(logits[-1].argmax()) == answer)


def owners(tokenizer: Tokenizer, sample: Sample, text: str, count: int) -> np.ndarray:
    """To what each of `count` tokens belongs, [L]."""
    assert sample.facts is not None and sample.fact_places is not None

    def token_at(place: int) -> int:
        return 1 + len(tokenizer.encode(text[:place].rstrip()))

    owner = np.full(count, BOOK)
    person = re.split(r"\W+", sample.question)[2]  # where is NAME?
    for fact, place in zip(sample.facts, sample.fact_places, strict=True):
        span = slice(token_at(place), token_at(place + len(fact)))
        if fact.startswith(person):
            owner[owner == SUPPORT] = OTHER_FACT  # only the last one answers
        owner[span] = SUPPORT if fact.startswith(person) else OTHER_FACT
    owner[token_at(len(sample.context)) :] = QUESTION
    return owner


def counted(every: list[Seen]) -> dict[str, object]:
    """Means over all questions, by block: the strength of writes, and the parts of what is read before the answer."""

    def by_owner(values: list[np.ndarray]) -> dict[str, list[float]]:
        return {name: np.mean([v[i] for v in values], axis=0).round(3).tolist() for i, name in enumerate(NAMES)}

    strength = [np.stack([s.written[:, s.owner == i].mean(axis=1) for i in range(4)]) for s in every]
    parts = [np.stack([s.part[:, s.owner == i].sum(axis=1) for i in range(4)]) for s in every]
    tokens = np.mean([[(s.owner == i).mean() for i in range(4)] for s in every], axis=0).round(3).tolist()
    return {
        "right": np.mean([s.right for s in every]).round(3).item(),
        "share of tokens": dict(zip(NAMES, tokens, strict=True)),
        "strength of writes": by_owner(strength),
        "part of what is read": by_owner(parts),
    }


def draw(seen: Seen) -> Figure:
    """Two heatmaps over the tokens: what each block writes, and what of it the last token reads."""
    figure = Figure(figsize=(0.145 * len(seen.tokens) + 1.5, 5.4), dpi=110, layout="constrained", facecolor="white")
    rows = (("strength of the write", seen.written), ("part in what is read\nbefore the answer", seen.part))
    colours = {OTHER_FACT: "#c06000", SUPPORT: "#b00020", QUESTION: "#2f6db3", BOOK: "#777777"}
    for axes, (title, values) in zip(figure.subplots(2, 1, sharex=True), rows, strict=True):
        image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
        axes.set_yticks(range(len(values)), [f"block {block}" for block in range(len(values))], fontsize=8)
        axes.set_title(title, fontsize=9, loc="left")
        figure.colorbar(image, ax=axes, fraction=0.02, pad=0.01)
    labels = axes.set_xticks(range(len(seen.tokens)), [shown(token) for token in seen.tokens], fontsize=7, rotation=90)
    for tick, owner in zip(labels, seen.owner.tolist(), strict=True):
        tick.label1.set_color(colours[owner])
    figure.suptitle("red: the fact that answers; orange: other facts; grey: books; blue: the question", fontsize=9)
    return figure


if __name__ == "__main__":
    raise SystemExit(main())
