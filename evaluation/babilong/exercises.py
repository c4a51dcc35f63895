"""Samples as training material: a JSON object a line, in the form `data_prep` takes for exercises."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path

from data_prep.files import replacing, write_text
from evaluation.babilong.facts import Question
from evaluation.babilong.lengths import tokens_of
from evaluation.babilong.sources import Generated

MANIFEST = "babilong.json"


def _ignore(count: int) -> None:
    pass


def write_exercises(
    source: Generated,
    folder: Path,
    tasks: Sequence[str],
    lengths: Sequence[str],
    count: int,
    exact: bool = False,
    advance: Callable[[int], None] = _ignore,
) -> dict[str, int]:
    """Write `count` exercises of every length and task, FOLDER/LENGTH/TASK.jsonl, and what they are.

    Exercises of a length have any number of tokens from the next shorter one's on (`exact`: all the same), as in the
    benchmark's curriculum: facts and questions then stand anywhere in a segment.  A task's questions go on from length
    to length and come again when all were used.

    Args: lengths: ascending; advance: called with the tokens of each one's budget.
    Returns the number of exercises of each file.
    """
    written: dict[str, int] = {}
    for task in tasks:
        questions = _again(source, task)
        for shorter, length in zip([lengths[0], *lengths], lengths, strict=False):
            least = None if exact else tokens_of(shorter)
            path = folder / length / f"{task}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
                for sample in source.generator.samples(task, length, questions, count, least):
                    row = {"context": sample.context, "question": sample.question, "answer": sample.answer}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    written[path.relative_to(folder).as_posix()] = written.get(f"{length}/{task}.jsonl", 0) + 1
                    advance(tokens_of(length))
    about = {"exercises": written, "lengths": "exact" if exact else "varied", **source.describe()}
    write_text(folder / MANIFEST, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return written


def _again(source: Generated, task: str) -> Iterator[Question]:
    return chain.from_iterable(source.questions(task) for _ in repeat(None))
