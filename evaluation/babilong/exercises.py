"""Write exercises to files on all cores, in the form that `data_prep` reads, a JSON object for each line."""

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
from evaluation.babilong.recipe import SHORT, ExerciseMaker, Places, Recipe, open_maker

MANIFEST = "babilong.json"
MIXED = "mixed"  # a length: the recipe's noise determines how long exercises are
_BLOCK = 250  # exercises that a process makes at once


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
    """Write `count` exercises of every length and task to FOLDER/LENGTH/TASK.jsonl, and a description of them.

    Exercises of a length have any number of tokens between the next shorter length and it (`exact`: all the same), as
    in the benchmark's curriculum, so that facts and questions lie anywhere in a segment. With the length `MIXED` they
    have the recipe's noise; with the length `SHORT` they are the first facts of stories. All other stories are whole,
    and none of 0k is too long for the longest length, so that a row of that many tokens holds any exercise. An exercise
    is a pure function of recipe, files, seed, task, lengths and number, so the written files do not depend on the
    number of processes.

    Args: lengths: ascending, after SHORT; advance: called with the number of exercises written since the last call.
    Returns the number of exercises of each file. Raises `DataError` when a file is missing or no story fits a length.
    """
    named = [length for length in lengths if length not in (SHORT, MIXED)]
    spans = list(zip(named if exact else [*named[:1], *named], named, strict=False))
    others = [(length, length) for length in lengths if length not in named]
    longest = tokens_of(named[-1]) if named else 0
    files = [(task, *span, longest) for task in recipe.tasks for span in others + spans]
    for kind in files:  # raises for what cannot be made before anything is written
        _lines(places, recipe, *kind, seed, 0, 1)
    about = described(open_maker(places, recipe), places, recipe, seed)
    blocks = [(first, min(_BLOCK, count - first)) for first in range(0, count, _BLOCK)]
    work = ((places, recipe, *kind, seed, *block) for kind in files for block in blocks)
    texts, written = in_order(_lines, work, min(workers, len(files) * len(blocks))), dict[str, int]()
    for task, _, length, _ in files:
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
    """Return the origin of exercises, for the description beside them."""
    files = bool(places.babi) and recipe.simulated < 1
    what: dict[str, Any] = {"facts": "bAbI files" if files else "simulator", "place": places.babi}
    what |= {"left_out": maker.material.left_out, "held_out": len(maker.material.held_out)}
    background = maker.background.name if maker.background else "none"
    return what | {"background": background, "seed": seed, "recipe": asdict(recipe)}


def _lines(
    places: Places, recipe: Recipe, task: str, least: str, length: str, longest: int, seed: int, first: int, count: int
) -> str:
    """Return exercises `first` … first + count - 1 of a task and length, one in each line."""
    maker, rows = open_maker(places, recipe), list[str]()
    for number in range(first, first + count):
        rng = Keyed("exercise", seed, task, length, number)
        if length == MIXED:
            turns = maker.turns(task, rng)
        elif length == SHORT:
            turns = maker.short_turns(task, rng)
        else:
            turns = maker.turns_of_length(task, tokens_of(least), tokens_of(length), longest, rng)
        rows.append(json.dumps(as_record(turns), ensure_ascii=False) + "\n")
    return "".join(rows)


def as_record(turns: Sequence[Turn]) -> dict[str, Any]:
    """Return an exercise as the object of a line; text after an answer begins with a space, as within a text."""
    records = [
        {
            "context": (" " if number and turn.sentences else "") + " ".join(turn.sentences),
            "question": turn.question,
            "answer": turn.answer,
        }
        for number, turn in enumerate(turns)
    ]
    return records[0] if len(records) == 1 else {"turns": records}
