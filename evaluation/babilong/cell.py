"""Evaluate one cell of BABILong's table, a task at a length."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from data_prep import Tokenizer
from evaluation.babilong.generator import Sample
from evaluation.babilong.lengths import canonical, tokens_of
from evaluation.babilong.scorers import SCORERS
from evaluation.babilong.tasks import TASKS
from evaluation.babilong.templates import FINETUNED_LAYOUT, PROMPTS, fill
from evaluation.reader import Reader
from evaluation.results import Row, share_row
from evaluation.retrieval import Retriever

Mode = Literal["prompt", "finetuned"]
MAX_TOKENS = 20  # of an answer, as in the benchmark
_BATCHES = 8  # of samples in memory at once


@dataclass(frozen=True)
class Answered:
    """A sample's question and answer, the model's output, and whether it is right by each of `SCORERS`."""

    number: int
    question: str
    answer: str
    output: str
    right: dict[str, bool]


@dataclass(frozen=True)
class Asker:
    """Turns samples into token ids.

    mode: `prompt` with an instruction and examples; `finetuned` in the `layout` that the model was trained with.
    """

    tokenizer: Tokenizer
    mode: Mode
    layout: str = FINETUNED_LAYOUT
    retriever: Retriever | None = None

    def ids(self, sample: Sample) -> list[int]:
        """Return bos and the ids of the text before the answer; in mode `finetuned` as data_prep lays out exercises."""
        if self.retriever:
            short = self.retriever.shorten(sample.context, sample.question)
            sample = Sample(sample.task, sample.length, short, sample.question, sample.answer)
        if self.mode == "prompt":
            text = PROMPTS[sample.task].text(sample)
        else:
            text = fill(self.layout, sample.context, sample.question)
        return [self.tokenizer.bos_id, *self.tokenizer.encode(text)]


def evaluate_cell(
    reader: Reader, asker: Asker, samples: Iterator[Sample], task: str, length: str
) -> tuple[list[Row], list[Answered]]:
    """Return a row for each scorer, and every answer."""
    answered: list[Answered] = []
    read = 0
    while group := list(islice(samples, reader.batch_size * _BATCHES)):
        prompts = [asker.ids(sample) for sample in group]
        read += sum(map(len, prompts))
        for sample, ids in zip(group, reader.answers(prompts, MAX_TOKENS, [asker.tokenizer.eos_id]), strict=True):
            output = asker.tokenizer.decode(ids)
            right = {
                name: scorer(output, sample.answer, sample.question, TASKS[task]) for name, scorer in SCORERS.items()
            }
            answered.append(Answered(len(answered), sample.question, sample.answer, output, right))
    rows = [
        share_row(
            sum(answer.right[name] for answer in answered),
            len(answered),
            task=f"babilong/{task}",
            length=canonical(length),
            tokens=tokens_of(length),
            read=round(read / max(1, len(answered)), 1),
            scorer=name,
            mode=asker.mode,
            capability=TASKS[task].capability,
        )
        for name in SCORERS
    ]
    return rows, answered
