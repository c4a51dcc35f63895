"""The cells of an evaluation, and those that need more than a reader: the harness and explicit memory."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep import Tokenizer
from data_prep.errors import DataError
from evaluation.babilong.cell import Answered
from evaluation.memories import MemorySource
from evaluation.memory_perplexity import perplexity_rows
from evaluation.perplexity import Documents
from evaluation.questions import MODES, Mode, evaluate_questions, load_questions
from evaluation.questions import Answered as QuestionAnswered
from evaluation.reader import Reader
from evaluation.results import Row

if TYPE_CHECKING:
    from training.checkpoint.trained_model import LoadedModel

HARNESS = "lm_eval:"  # prefix of the tasks of lm-evaluation-harness
QUESTIONS = "nq"
_HARNESS_TOKENS = 100_000  # rough tokens of a task of the harness, to estimate the time
_QUESTION_TOKENS = 40
_PASSAGES_TOKENS = 700


@dataclass
class Outcome:
    """What one cell of an evaluation gives: rows, answers, and series by name."""

    rows: list[Row]
    answers: list[Answered] | list[QuestionAnswered] = field(default_factory=list)
    series: dict[str, dict[str, list[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """A part of an evaluation that is measured at once.

    keys: (task, length) of the rows it makes; tokens: about how many it reads; run: measures it.
    """

    name: str
    keys: tuple[tuple[str, str | None], ...]
    tokens: int
    run: Callable[[Reader], Outcome]


def harness_cell(trained: "LoadedModel", task: str, samples: int, data: Path | None, include: Path | None) -> Cell:
    """Return the cell of a task of lm-evaluation-harness, with the task's own shots; task: with the prefix HARNESS.

    Raises `DataError` when the harness is not installed.
    """
    try:
        from evaluation.harness import run_harness
    except ImportError as error:
        raise DataError(f"--tasks: {task}: {error}") from None
    name = task.removeprefix(HARNESS)

    def run(reader: Reader) -> Outcome:
        return Outcome(run_harness(trained, [name], samples, None, reader.batch_size, data, include))

    return Cell(task, ((task, None),), _HARNESS_TOKENS, run)


def question_cells(path: Path | None, tokenizer: Tokenizer, samples: int, source: MemorySource | None) -> list[Cell]:
    """Return a cell for each mode: closed book and, with `source`, references as text and as explicit memory.

    Raises `DataError` when no file of questions is given.
    """
    if path is None:
        raise DataError(
            "--questions: is missing; give a JSONL file of lines {question, answers, passage}, such as "
            "Natural Questions with gold passages (github.com/google-research-datasets/natural-questions)"
        )
    questions = load_questions(path)[:samples]

    def cell(mode: Mode) -> Cell:
        def run(reader: Reader) -> Outcome:
            rows, answers = evaluate_questions(
                reader.net, tokenizer, questions, source, [mode], batch_size=reader.batch_size
            )
            return Outcome(rows, answers)

        name, read = f"{QUESTIONS}/{mode}", _PASSAGES_TOKENS if mode == "text in prompt" else _QUESTION_TOKENS
        return Cell(name, ((name, None),), len(questions) * read, run)

    return [cell(mode) for mode in (MODES if source is not None else MODES[:1])]


def memory_perplexity_cell(documents: Documents, samples: int, length: int, source: MemorySource) -> Cell:
    """Return the cell of the loss in nats per token on texts of `length` tokens, with and without references."""

    def run(reader: Reader) -> Outcome:
        texts = documents.ids(samples, length).tolist()
        return Outcome(perplexity_rows(reader.net, texts, source, reader.batch_size))

    keys = (("perplexity/without memory", None), ("perplexity/explicit memory", None))
    return Cell("perplexity with references", keys, 2 * samples * length, run)
