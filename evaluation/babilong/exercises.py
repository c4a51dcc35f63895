"""Exercises as files: a JSON object a line, in the form `data_prep` takes; written by all cores."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.files import replacing, write_text
from evaluation.babilong.encoding import Turn
from evaluation.babilong.lengths import tokens_of
from evaluation.babilong.parallel import in_order
from evaluation.babilong.randomness import Keyed
from evaluation.babilong.recipe import ExerciseMaker, Places, Recipe, open_maker

MANIFEST = "babilong.json"
MIXED = "mixed"  # stands for a length where the recipe's noise says how long exercises are
_BLOCK = 250  # exercises a process makes at once


def _ignore(count: int) -> None:
    pass


def write_exercises(
    places: Places,
    recipe: Recipe,
    folder: Path,
    lengths: Sequence[str],
    count: int,
    exact: bool = False,
    seed: int = 0,
    workers: int = 1,
    advance: Callable[[int], None] = _ignore,
) -> dict[str, int]:
    """Write `count` exercises of every length and task, FOLDER/LENGTH/TASK.jsonl, and what they are.

    Exercises of a length have any number of tokens from the next shorter one's on (`exact`: all the same), as in the
    benchmark's curriculum: facts and questions then stand anywhere in a segment. `MIXED` as a length: as much noise as
    the recipe says. An exercise is a pure function of recipe, files, seed, task, length and number: any number of
    processes writes the same files.

    Args: lengths: ascending; advance: called with exercises written since the last call.
    Returns the number of exercises of each file. Raises `DataError` where a file or room for a story is missing.
    """
    spans = list(zip(lengths if exact else [lengths[0], *lengths], lengths, strict=False))
    files = [(task, *span) for task in recipe.tasks for span in spans]
    for task, least, length in files:  # what cannot be made is said before anything is written
        _lines(places, recipe, task, least, length, seed, 0, 1)
    about = described(open_maker(places, recipe), places, recipe, seed)
    blocks = [(first, min(_BLOCK, count - first)) for first in range(0, count, _BLOCK)]
    work = ((places, recipe, *file, seed, *block) for file in files for block in blocks)
    texts, written = in_order(_lines, work, min(workers, len(files) * len(blocks))), dict[str, int]()
    for task, _, length in files:
        name = f"{length}/{task}.jsonl"
        (folder / length).mkdir(parents=True, exist_ok=True)
        with replacing(folder / name) as temporary, temporary.open("w", encoding="utf-8") as file:
            for (_, some), text in zip(blocks, texts, strict=False):
                file.write(text)
                advance(some)
        written[name] = count
    about = {"exercises": written, "lengths": "exact" if exact else "varied"} | about
    write_text(folder / MANIFEST, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return written


def described(maker: ExerciseMaker, places: Places, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What exercises are made of, for the file beside them."""
    files = bool(places.babi) and recipe.simulated < 1
    what: dict[str, Any] = {"facts": "bAbI files" if files else "simulator", "place": places.babi}
    what |= {"left_out": maker.material.left_out, "held_out": len(maker.material.held_out)}
    background = maker.background.name if maker.background else "none"
    return what | {"background": background, "seed": seed, "recipe": asdict(recipe)}


def _lines(
    places: Places, recipe: Recipe, task: str, least: str, length: str, seed: int, first: int, count: int
) -> str:
    """Exercises `first` … first + count - 1 of a task and length, a line each."""
    maker, rows = open_maker(places, recipe), list[str]()
    for number in range(first, first + count):
        rng = Keyed("exercise", seed, task, length, number)
        if length == MIXED:
            turns = maker.turns(rng, task)
        else:
            turns = maker.turns_of_length(task, tokens_of(least), tokens_of(length), rng)
        rows.append(json.dumps(as_record(turns), ensure_ascii=False) + "\n")
    return "".join(rows)


def as_record(turns: Sequence[Turn]) -> dict[str, Any]:
    """An exercise as a line of a file; what goes on after an answer begins with a space, as within a text."""
    records = [
        {
            "context": (" " if number and turn.sentences else "") + " ".join(turn.sentences),
            "question": turn.question,
            "answer": turn.answer,
        }
        for number, turn in enumerate(turns)
    ]
    return records[0] if len(records) == 1 else {"turns": records}
