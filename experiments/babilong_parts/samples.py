"""Questions to evaluate with: facts of bAbI's held-out files in books that no row is made of, as token ids."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from data_prep import load_tokenizer
from evaluation.babilong.background import open_background
from evaluation.babilong.generator import Generator
from evaluation.babilong.sources import Generated
from evaluation.babilong.templates import FINETUNED_LAYOUT, fill
from evaluation.retrieval import BM25, Retriever
from experiments.babilong_parts.measuring import Asked
from experiments.babilong_parts.rows import Writer
from experiments.babilong_parts.workers import begin


@dataclass(frozen=True)
class Cell:
    """A task at a length: `count` of its questions, after the first `skip`.

    retrieved: the model reads this many sentences of the context: those that BM25 ranks first for the question, in the
    order of the text.  None: it reads the whole context.
    """

    task: str
    length: str
    count: int
    skip: int = 0
    retrieved: int | None = None


def make_cell(cell: Cell, babi: Path, books: tuple[str, ...], tokenizer_path: Path, seed: int = 0) -> list[Asked]:
    """The cell's questions, the same for every model.  books: those no training row is made of."""
    tokenizer = load_tokenizer(tokenizer_path)
    background = open_background(list(books)) if books else None
    source = Generated(Generator(background, tokenizer, seed, "test"), str(babi))
    writer = Writer(tokenizer, None)
    retriever = None if cell.retrieved is None else Retriever(BM25(), "sentence", cell.retrieved, tokenizer)
    asked = []
    for sample in islice(source.samples(cell.task, cell.length, cell.skip + cell.count), cell.skip, None):
        context = retriever.shorten(sample.context, sample.question) if retriever else sample.context
        prompt = [tokenizer.bos_id, *tokenizer.encode(fill(FINETUNED_LAYOUT, context, sample.question))]
        asked.append(Asked(np.array(prompt, np.int32), np.array(writer.answer(sample.answer), np.int32)))
    return asked


def _to_file(cell: Cell, babi: Path, books: tuple[str, ...], tokenizer: Path, folder: str) -> str:
    path = f"{folder}/{cell.task}-{cell.length}-{cell.retrieved}.npz"
    asked = make_cell(cell, babi, books, tokenizer)
    np.savez(path, **{f"{part}{i}": getattr(a, part) for i, a in enumerate(asked) for part in ("prompt", "answer")})
    return path


def make_cells(
    cells: list[Cell], babi: Path, books: tuple[str, ...], tokenizer: Path, workers: int
) -> Iterator[tuple[Cell, list[Asked]]]:
    """All cells, in their order, made by `workers` processes."""
    with (
        TemporaryDirectory(prefix="cells-") as folder,
        ProcessPoolExecutor(workers, get_context("spawn"), initializer=begin, initargs=(10,)) as pool,
    ):
        made = [pool.submit(_to_file, cell, babi, books, tokenizer, folder) for cell in cells]
        for cell, future in zip(cells, made, strict=True):
            with np.load(future.result()) as found:
                yield cell, [Asked(found[f"prompt{i}"], found[f"answer{i}"]) for i in range(len(found.files) // 2)]
