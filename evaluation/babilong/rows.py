"""Packed rows of exercises made on the spot: training data without files, as fast as a few cores can feed one GPU.

Rows come in blocks, and a block is a pure function of the recipe and (seed, block number): any number of processes
makes the same rows, and a run that was stopped goes on with the rows it would have had.
"""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_prep import Tokenizer
from data_prep.errors import DataError
from data_prep.shards import Tokens
from evaluation.babilong.background import Background
from evaluation.babilong.dense import ASKED, KINDS, asked_densely, simulated
from evaluation.babilong.encoding import SentenceEncoder, Turn, turns_of
from evaluation.babilong.noise import Noise
from evaluation.babilong.randomness import Keyed
from evaluation.babilong.simulator import tell_story
from evaluation.babilong.stories import Material, Story, permuted, single, story_of

Form = Literal["single", "story", "dense"]
BLOCK = 64  # rows made at once
_WAITING = 48  # exercises a row is filled from
_TRIES = 1000  # exercises that do not fit into a row, for one that does
T = TypeVar("T")
Exercise = tuple["array[int]", list[tuple[int, int]]]  # ids, and where answers begin and end


class Row(NamedTuple):
    """L = row_length.

    tokens: uint16 (uint32 for more than 65,536 pieces) [L + 1]; inputs are tokens[:-1], targets tokens[1:].
    loss_mask: bool [L]; True at t where tokens[t + 1] belongs to an answer or is the eos that ends one.
    document_ids: int32 [L + 1]; 0, 1, 2, … by exercise.  What stays free at the end is eos tokens of one more document.
    """

    tokens: Tokens
    loss_mask: NDArray[np.bool_]
    document_ids: NDArray[np.int32]


@dataclass(frozen=True)
class Recipe:
    """What exercises are made of.  Shares need not add up to 1.

    tasks: task -> share.
    forms: form -> share.  single: one question at a story's end; story: all of a story's own questions; dense:
        questions of every kind after any fact.
    simulated: share of the stories that the simulator tells; the others are those of bAbI's training files.
    permute: people, rooms and objects of the files' stories are exchanged (`stories.permuted`), with verbs.
    noise: N -> share: book sentences of 0 … N tokens, evenly drawn, among facts and questions.
    asked: dense: share of the facts that a question follows.
    """

    tasks: dict[str, float]
    forms: dict[Form, float] = field(default_factory=lambda: {"dense": 1.0})
    simulated: float = 0.5
    permute: bool = True
    noise: dict[int, float] = field(default_factory=lambda: {0: 1.0})
    asked: float = ASKED

    def __post_init__(self) -> None:
        """Raises `DataError` for shares that are no shares and tasks that have no dense stories."""
        given: dict[str, Mapping[Any, float]] = {"tasks": self.tasks, "forms": self.forms, "noise": self.noise}
        for name, shares in given.items():
            if not sum(shares.values()) or min(shares.values()) < 0:
                raise DataError(f"{name}: shares are {shares}; none may be below 0 and one must be above")
        if self.forms.get("dense") and (without := [task for task in self.tasks if task not in KINDS]):
            raise DataError(f"tasks: {without[0]} has no dense stories; leave it out, or the form dense")


class ExerciseMaker:
    """Exercises of a recipe, each a pure function of its key.

    Args:
        background: books for the noise; None: without noise.

    Raises:
        DataError: the recipe asks for noise without a background.
    """

    def __init__(
        self, recipe: Recipe, material: Material, encoder: SentenceEncoder, background: Background | None
    ) -> None:
        if background is None and any(most and share for most, share in recipe.noise.items()):
            raise DataError("--background: noise is asked for; pass a folder of books")
        self._recipe, self._material, self.encoder = recipe, material, encoder
        self._noise = Noise(background, encoder) if background else None

    def turns(self, rng: Keyed) -> list[Turn]:
        """An exercise's turns."""
        story = Story(())
        while not story.items:  # all its questions may be kept for evaluation
            story = self._story(_drawn(self._recipe.tasks, rng), _drawn(self._recipe.forms, rng), rng)
        noise = self._sentences(rng)
        gaps = sorted(rng.below(len(noise) + 1) for _ in story.items[1:]) if noise else [0] * (len(story.items) - 1)
        return turns_of(story, noise, gaps)

    def _story(self, task: str, form: Form, rng: Keyed) -> Story:
        recipe, held_out = self._recipe, self._material.held_out
        found = None if recipe.simulated and rng.share() < recipe.simulated else self._material.story(task, rng)
        if form == "dense":
            if found is None:
                return simulated(task, rng, held_out, recipe.asked)
            if recipe.permute:
                found = permuted(found, task, rng)
            return asked_densely(found.facts, task, rng, held_out, False, recipe.asked)
        story = story_of(tell_story(task, rng)) if found is None else found
        if recipe.permute and found is not None:
            story = permuted(story, task, rng)
        story = story.without(held_out, found is None)
        return single(story, rng) if form == "single" and story.questions else story

    def _sentences(self, rng: Keyed) -> list[str]:
        if self._noise is None:
            return []
        return self._noise.sentences(rng.below(_drawn(self._recipe.noise, rng) + 1), rng)


def _drawn(shares: Mapping[T, float], rng: Keyed) -> T:
    """One of the keys, as often as its share says."""
    keys, drawn = list(shares), rng.share() * sum(shares.values())
    for key in keys:
        drawn -= shares[key]
        if drawn < 0:
            break
    return key


class RowMaker:
    """Rows of `row_length` + 1 tokens, block by block."""

    def __init__(self, maker: ExerciseMaker, row_length: int, seed: int) -> None:
        self._maker, self._seed, self._capacity = maker, seed, row_length + 1
        self._encoder = maker.encoder
        self._type = np.dtype(self._encoder.type)

    def block(self, number: int) -> list[Row]:
        """The `BLOCK` rows of a block.

        Raises:
            DataError: no exercise fits into a row.
        """
        rng = Keyed("rows", self._seed, number)
        waiting = [self._exercise(rng) for _ in range(_WAITING)]
        return [self._row(self._chosen(waiting, rng)) for _ in range(BLOCK)]

    def _chosen(self, waiting: list[Exercise], rng: Keyed) -> list[Exercise]:
        """A row's exercises: the one that waits longest, then always the longest that still fits."""
        chosen, free, place = list[Exercise](), self._capacity, 0
        while place >= 0:
            chosen.append(waiting.pop(place))
            waiting.append(self._exercise(rng))
            free -= len(chosen[-1][0])
            place, best = -1, 0
            for index, (ids, _) in enumerate(waiting):
                if best < len(ids) <= free:
                    place, best = index, len(ids)
        return chosen

    def _exercise(self, rng: Keyed) -> Exercise:
        """An exercise up to the last answer that fits into a row."""
        for _ in range(_TRIES):
            ids, answers = self._encoder.exercise(self._maker.turns(rng))
            fitting = [answer for answer in answers if answer[1] <= self._capacity]
            if fitting:
                return ids[: fitting[-1][1]], fitting
        raise DataError(f"row_length is {self._capacity - 1}: no exercise fits; raise it, or ask for less noise")

    def _row(self, exercises: list[Exercise]) -> Row:
        tokens = np.full(self._capacity, self._encoder.tokenizer.eos_id, self._type)
        learned = np.zeros(self._capacity, np.bool_)
        documents = np.full(self._capacity, len(exercises), np.int32)
        begin = 0
        for number, (ids, answers) in enumerate(exercises):
            tokens[begin : begin + len(ids)] = np.frombuffer(ids, self._type)
            documents[begin : begin + len(ids)] = number
            for first, end in answers:
                learned[begin + first : begin + end] = True
            begin += len(ids)
        return Row(tokens, learned[1:], documents)


def stream_of_rows(
    seed: int,
    recipe: Recipe,
    material: Material,
    tokenizer: Tokenizer,
    row_length: int,
    background: Background | None = None,
    *,
    worker: int = 0,
    workers: int = 1,
    first_block: int = 0,
) -> Iterator[Row]:
    """Rows without end: of the blocks from `first_block` on, those whose number is `worker` modulo `workers`.

    Args:
        material: what `stories.load_material` reads.
        background: what `background.open_background` opens; needed for noise.

    Raises:
        DataError: noise without background, or exercises that do not fit into a row.
    """
    maker = RowMaker(ExerciseMaker(recipe, material, SentenceEncoder(tokenizer), background), row_length, seed)
    for number in count(first_block):
        if number % workers == worker:
            yield from maker.block(number)
