"""An evaluation as a list of cells, each of which is measured once and then kept in the results."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep import Tokenizer
from data_prep.errors import DataError
from evaluation.babilong.background import Background, open_background
from evaluation.babilong.cell import Asker, evaluate_cell
from evaluation.babilong.generator import Generator
from evaluation.babilong.lengths import tokens_of
from evaluation.babilong.sources import Generated, Released, Samples
from evaluation.cells import HARNESS, QUESTIONS, Cell, Outcome, harness_cell, memory_perplexity_cell, question_cells
from evaluation.memories import MemorySource, open_source
from evaluation.mmlu import WHERE, Mmlu, evaluate_subject
from evaluation.options import Options
from evaluation.perplexity import Documents, loss_by_position, rows_of, series_of
from evaluation.reader import Reader
from evaluation.retrieval import BM25, Dense, Retriever
from training.checkpoint.trained_model import LoadedModel

_AROUND = 300  # rough tokens of a prompt beside the context, to estimate the time
_SUBJECT = 200  # questions of a subject, about


@dataclass
class Suite:
    """The cells of an evaluation's options. Making it raises `DataError` when files are missing."""

    options: Options
    trained: LoadedModel
    tokenizer: Tokenizer
    layout: str
    data: Path | None = None
    cells: list[Cell] = field(default_factory=list)
    _samples: Samples | None = None
    _mmlu: Mmlu | None = None
    _texts: Background | None = None

    def __post_init__(self) -> None:
        if self.options.chosen("babilong"):
            self._add_babilong()
        if self.options.chosen("mmlu"):
            self._add_mmlu()
        if "perplexity" in self.options.tasks:
            self._add_perplexity()
        if QUESTIONS in self.options.tasks:
            options = self.options
            self.cells += question_cells(options.questions, self.tokenizer, options.samples, self.source)
        for task in self.options.tasks:
            if task.startswith(HARNESS):
                self.cells.append(
                    harness_cell(self.trained, task, self.options.samples, self.data, self.options.include)
                )

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return the origin of each suite's samples."""
        origins: dict[str, dict[str, Any]] = {}
        if self._samples is not None:
            origins["babilong"] = self._samples.describe()
            if self.retriever is not None:
                origins["babilong"]["retrieval"] = self.retriever.name
        if self._mmlu is not None:
            origins["mmlu"] = {"folder": str(self._mmlu.folder), "split": self._mmlu.split}
        if "perplexity" in self.options.tasks:
            origins["perplexity"] = {"texts": self._background().name}
        if QUESTIONS in self.options.tasks:
            origins[QUESTIONS] = {"questions": str(self.options.questions)}
        return origins

    @cached_property
    def retriever(self) -> Retriever | None:
        options = self.options
        if options.retrieval == "none":
            return None
        ranker = BM25() if options.retrieval == "bm25" else Dense(options.dense_model)
        return Retriever(ranker, options.unit, options.top_k, self.tokenizer)

    @cached_property
    def source(self) -> MemorySource | None:
        """The source of explicit memories; None without --references."""
        options = self.options
        if options.references is None:
            if options.bank is not None:
                raise DataError("--bank: needs --references FOLDER, the texts its memories were written from")
            return None
        return open_source(self.trained.net, options.references, options.bank, self.tokenizer.fingerprint)

    def _background(self) -> Background:
        if self._texts is None:
            self._texts = open_background(self.options.background)
        return self._texts

    def _add_babilong(self) -> None:
        options = self.options
        if options.released is not None:
            self._samples = Released(options.released)
        else:
            long = any(map(tokens_of, options.lengths))
            background = self._background() if long else None
            self._samples = Generated(Generator(background, self.tokenizer, options.seed, "test"), options.babi)
        samples, asker = self._samples, Asker(self.tokenizer, options.mode, self.layout, self.retriever)
        for length in options.lengths:
            for task in options.chosen("babilong"):
                samples.check(task, length)

                def run(reader: Reader, task: str = task, length: str = length) -> Outcome:
                    chosen = samples.samples(task, length, options.samples)
                    return Outcome(*evaluate_cell(reader, asker, chosen, task, length))

                name = f"babilong/{task}"
                cost = options.samples * (tokens_of(length) + _AROUND)
                self.cells.append(Cell(f"{name} {length}", ((name, length),), cost, run))

    def _add_mmlu(self) -> None:
        if self.options.mmlu is None:
            raise DataError(f"--mmlu: is missing; {WHERE}")
        mmlu = self._mmlu = Mmlu(self.options.mmlu.expanduser(), self.options.shots)
        for subject in self.options.chosen("mmlu"):
            problems = mmlu.problems(subject)[: self.options.samples]
            next(mmlu.prompts(subject, problems), None)  # raises when its examples are missing

            def run(reader: Reader, subject: str = subject) -> Outcome:
                return Outcome([evaluate_subject(reader, self.tokenizer, mmlu, subject, self.options.samples)])

            name = f"mmlu/{subject}"
            cost = len(problems) * _AROUND * (self.options.shots + 1) // 3
            self.cells.append(Cell(name, ((name, None),), cost, run))

    def _add_perplexity(self) -> None:
        options = self.options
        lengths = [(name, tokens_of(name)) for name in options.lengths if tokens_of(name) > 1]
        if not lengths:
            raise DataError("--lengths: perplexity needs a length above 0k; add one, such as 4k")
        longest = max(tokens for _, tokens in lengths)
        documents = Documents(self._background(), self.tokenizer, options.seed)

        def run(reader: Reader) -> Outcome:
            ids = documents.ids(options.samples, longest)
            loss = loss_by_position(reader, ids)
            return Outcome(rows_of(loss, lengths, len(ids)), series={"perplexity_by_position": series_of(loss)})

        keys = tuple(("perplexity", name) for name, _ in lengths)
        self.cells.append(Cell("perplexity", keys, options.samples * longest, run))
        if self.source is not None:
            self.cells.append(memory_perplexity_cell(documents, options.samples, longest, self.source))


def answers_path(output: Path, cell: Cell) -> Path:
    """Return the path of a cell's answers, in a folder beside the results."""
    return output.with_suffix(".answers") / f"{cell.name.replace('/', '-').replace(' ', '-')}.jsonl"
