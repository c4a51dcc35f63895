"""Make packed rows of exercises during training, without files; a few cores are fast enough for one GPU.

Rows come in blocks, and a block is a pure function of recipe, seed and block number. So the rows do not depend on the
number of processes, and a run that continues gets the rows that it would have got.
"""

from array import array
from collections.abc import Iterator
from itertools import count, islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep import Tokenizer
from data_prep.errors import DataError
from data_prep.shards.reading import Tokens
from evaluation.babilong.background import Background
from evaluation.babilong.encoding import SentenceEncoder
from evaluation.babilong.material import Material
from evaluation.babilong.parallel import in_order
from evaluation.babilong.randomness import Keyed
from evaluation.babilong.recipe import ExerciseMaker, Places, Recipe, drawn, open_maker

BLOCK = 256  # rows that are made at once
_WAITING = 32  # exercises from which a row is filled
_TRIES = 1000  # exercises that are tried for one that fits into a row
Exercise = tuple["array[int]", list[tuple[int, int]]]  # ids, and (begin, end) of each answer
Block = tuple[Tokens, NDArray[np.bool_], NDArray[np.int32]]  # of rows, stacked


class Row(NamedTuple):
    """A packed row; L is row_length.

    tokens: uint16 (uint32 for more than 65,536 pieces) [L + 1]; inputs are tokens[:-1], targets tokens[1:].
    loss_mask: bool [L]; True at t where tokens[t + 1] belongs to an answer or is the eos that ends one.
    document_ids: int32 [L + 1]; 0, 1, 2, … by exercise. The free end is one more document, of eos tokens.
    """

    tokens: Tokens
    loss_mask: NDArray[np.bool_]
    document_ids: NDArray[np.int32]


class RowMaker:
    """Makes rows of `row_length` + 1 tokens, block by block."""

    def __init__(self, maker: ExerciseMaker, row_length: int, seed: int) -> None:
        self._maker, self._seed, self._capacity = maker, seed, row_length + 1
        self._encoder = maker.encoder
        self._type = np.dtype(self._encoder.type)

    def block(self, number: int) -> list[Row]:
        """Return the `BLOCK` rows of a block.

        Raises:
            DataError: no exercise fits into a row.
        """
        exercises = self._exercises(Keyed("rows", self._seed, number))
        waiting = list(islice(exercises, _WAITING))
        return [self._row(self._chosen(waiting, exercises)) for _ in range(BLOCK)]

    def _chosen(self, waiting: list[Exercise], exercises: Iterator[Exercise]) -> list[Exercise]:
        """Return a row's exercises; each is the one of those that fit that has waited longest."""
        chosen, free = list[Exercise](), self._capacity
        place: int | None = 0
        while place is not None:
            chosen.append(waiting.pop(place))
            waiting.append(next(exercises))
            free -= len(chosen[-1][0])
            place = next((place for place, (ids, _) in enumerate(waiting) if len(ids) <= free), None)
        return chosen

    def _exercises(self, rng: Keyed) -> Iterator[Exercise]:
        shares = {task: share for task, share in self._maker.recipe.tasks.items() if share}
        # tokens of each task so far, divided by its share; random at first, so that blocks begin with different tasks
        had = {task: rng.share() * self._capacity for task in shares}
        while True:
            task = drawn(shares, rng)
            if self._maker.recipe.share_of == "tokens":
                task = min(had, key=had.__getitem__)
            exercise = self._fitting(task, rng)
            had[task] += len(exercise[0]) / shares[task]
            yield exercise

    def _fitting(self, task: str, rng: Keyed) -> Exercise:
        """Return an exercise up to the last answer that fits into a row."""
        for _ in range(_TRIES):
            ids, answers = self._encoder.exercise(self._maker.turns(rng, task))
            fitting = [answer for answer in answers if answer[1] <= self._capacity]
            if fitting:
                return ids[: fitting[-1][1]], fitting
        raise DataError(f"row_length is {self._capacity - 1}: no exercise fits; raise it, or use less noise")

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
    """Yield rows without end, of the blocks from `first_block` on whose number is `worker` modulo `workers`.

    Args:
        material: from `material.load_material`.
        background: from `background.open_background`; required for noise.

    Raises:
        DataError: the recipe has noise without a background, or no exercise fits into a row.
    """
    maker = RowMaker(ExerciseMaker(recipe, material, SentenceEncoder(tokenizer), background), row_length, seed)
    for number in count(first_block):
        if number % workers == worker:
            yield from maker.block(number)


def rows_by_processes(
    seed: int, recipe: Recipe, places: Places, row_length: int, workers: int, first_block: int = 0
) -> Iterator[Row]:
    """Yield all rows of `stream_of_rows`, in order, which `workers` processes make ahead.

    The processes end when the iterator is closed.
    """
    work = ((places, recipe, row_length, seed, number) for number in count(first_block))
    for rows in in_order(_block, work, workers):
        yield from map(Row, *rows)


def _block(places: Places, recipe: Recipe, row_length: int, seed: int, number: int) -> Block:
    """Return a block's rows stacked, which is faster to send than single rows."""
    rows = RowMaker(open_maker(places, recipe), row_length, seed).block(number)
    tokens, masks, documents = zip(*rows, strict=True)
    return np.stack(tokens), np.stack(masks), np.stack(documents)
