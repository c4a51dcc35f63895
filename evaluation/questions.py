"""Questions about passages, answered from the weights alone, with passages in the prompt, or as explicit memory.

The corpus is JSONL with `question`, `answers` (any of them is right), `passage` and `title`, such as Natural Questions
with gold passages. SQuAD's form is read too: `context` for `passage` and `{"text": [...]}` for answers. The references
are the passages of all questions, so that a question's passage must be found among all of them.
"""

import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep import Tokenizer
from data_prep.errors import DataError
from data_prep.files import encodes, lines_of, parse_json
from data_prep.suggest import did_you_mean
from evaluation.memories import MemorySource
from evaluation.results import Row, share_row
from model.explicit.generation import generate_with_memory
from model.generation import Sampling
from model.network import LanguageModel

Mode = Literal["closed book", "text in prompt", "explicit memory"]
MODES: tuple[Mode, ...] = ("closed book", "text in prompt", "explicit memory")
PROMPT = "Question: {question}\nAnswer:"
WITH_TEXT = "{text}\n\n"
_FORM = (
    'a line is {"question": text, "answers": [texts], "passage": text}, or SQuAD\'s with "context" and '
    '{"text": [texts]} (docs/accepted-inputs.md)'
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Question:
    """One question, its right answers, and the passage that answers it."""

    question: str
    answers: tuple[str, ...]
    passage: str
    title: str = ""


def load_questions(path: Path) -> list[Question]:
    """Reads a JSONL file, or the one JSONL file of a folder. Raises DataError that names file and line."""
    files = [path]
    if path.is_dir():
        seen = [each for each in path.iterdir() if not each.name.startswith(".")]
        files = sorted(each for each in seen if each.name.lower().endswith(".jsonl"))
    if len(files) != 1:
        raise DataError(f"{path}: has {len(files)} *.jsonl files; give one file of questions")
    try:
        lines = lines_of(files[0].read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{files[0]}: cannot be read as UTF-8 text ({error}); give a JSONL file") from error
    numbered = enumerate(lines, start=1)
    questions = [_question(line, f"{files[0]}:{number}") for number, line in numbered if line.strip()]
    if not questions:
        raise DataError(f"{files[0]}: has no question; {_FORM}")
    return questions


def _question(line: str, where: str) -> Question:
    """Read one line of the corpus. Raises DataError that names the key."""
    try:
        record = parse_json(line)
    except ValueError as error:
        raise DataError(f"{where}: is not JSON ({error}); {_FORM}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: is a JSON {type(record).__name__}; {_FORM}")
    text = {key: _text(record, key, where) for key in ("question", "passage" if "passage" in record else "context")}
    question, passage = text.values()
    title = _text(record, "title", where) if record.get("title") is not None else ""
    return Question(question, _answers(record.get("answers"), where), passage, title)


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not encodes(value):
        said = f"is {value!r}" if key in record else "is missing" + did_you_mean(key, record)
        raise DataError(f"{where}: {key} {said[:80]}, it must be a text; {_FORM}")
    return value


def _answers(given: Any, where: str) -> tuple[str, ...]:
    """Read answers: a list of texts, one text, or SQuAD's object with either."""
    texts = given.get("text") if isinstance(given, dict) else given
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(_is_answer(text) for text in texts):
        raise DataError(f"{where}: answers are {str(given)[:80]}, they must be texts, at least one; {_FORM}")
    return tuple(texts)


def _is_answer(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and encodes(value)


def normalised(text: str) -> str:
    """Return the text in lower case, without punctuation, articles and extra white space, as usual for such tasks."""
    plain = unicodedata.normalize("NFKC", text).lower()
    bare = "".join(sign for sign in plain if sign not in string.punctuation and unicodedata.category(sign)[0] != "P")
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact(answer: str, right: Sequence[str]) -> bool:
    """Whether the answer's first line equals a right answer."""
    line = answer.strip().split("\n", 1)[0]
    return any(normalised(line) == normalised(each) for each in right)


def contains(answer: str, right: Sequence[str]) -> bool:
    """Whether the answer contains a right answer as whole words."""
    words = f" {normalised(answer)} "
    return any(f" {normalised(each)} " in words for each in right if normalised(each))


SCORERS: dict[str, Callable[[str, Sequence[str]], bool]] = {"exact": exact, "contains": contains}


@dataclass(frozen=True)
class Answered:
    """A question and the model's answer."""

    question: str
    answers: tuple[str, ...]
    said: str
    mode: Mode


def ask(
    net: LanguageModel,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    mode: Mode,
    source: MemorySource | None = None,
    max_tokens: int = 16,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Answered]:
    """Answer questions greedily, up to the end of a line.

    source: required for "explicit memory", and for "text in prompt", which puts the texts of the same references before
    the question, the best one last. Raises DataError when it is missing.
    """
    if mode != "closed book" and source is None:
        raise DataError(f"nq: {mode} needs references; give --references FOLDER (and --bank FOLDER)")
    prompts = [_prompt(tokenizer, question, source if mode == "text in prompt" else None) for question in questions]
    memories = source if mode == "explicit memory" else None
    said = [""] * len(questions)
    for batch in _batches([len(prompt) for prompt in prompts], batch_size):
        written: list[list[int]] = [[] for _ in batch]
        chosen = [prompts[index] for index in batch]
        for row, token in generate_with_memory(net, chosen, memories, max_tokens, Sampling(0), 0, tokenizer.eos_id):
            written[row].append(token)
        for index, tokens in zip(batch, written, strict=True):
            kept = [token for token in tokens if token not in (tokenizer.bos_id, tokenizer.eos_id)]
            said[index] = tokenizer.decode(kept).strip().split("\n", 1)[0]
        advance(len(batch))
    return [Answered(q.question, q.answers, text, mode) for q, text in zip(questions, said, strict=True)]


def _prompt(tokenizer: Tokenizer, question: Question, source: MemorySource | None) -> list[int]:
    asked = PROMPT.format(question=question.question)
    text = ""
    if source is not None:
        references = source.texts([tokenizer.encode(asked)])[0]
        text = "".join(WITH_TEXT.format(text=each.strip()) for each in reversed(references))
    return [tokenizer.bos_id, *tokenizer.encode(text + asked)]


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield batches of indices of prompts of about equal length."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def rows_of(answered: Sequence[Answered], task: str = "nq") -> list[Row]:
    """Return a row for each scorer, of the task "nq/MODE", with the share of right answers and its interval."""
    rows = []
    for scorer, is_right in SCORERS.items():
        right = sum(is_right(each.said, each.answers) for each in answered)
        rows.append(share_row(right, len(answered), task=f"{task}/{answered[0].mode}", scorer=scorer))
    return rows


def evaluate_questions(
    net: LanguageModel,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    source: MemorySource | None,
    modes: Sequence[Mode] | None = None,
    **options: int,
) -> tuple[list[Row], list[Answered]]:
    """Return rows and answers of each mode; modes None: all, or without a source only closed book."""
    if modes is None:
        modes = MODES if source is not None else MODES[:1]
    rows: list[Row] = []
    everything: list[Answered] = []
    for mode in modes:
        answered = ask(net, tokenizer, questions, mode, source, **options)  # type: ignore[arg-type]
        rows += rows_of(answered)
        everything += answered
    return rows, everything
