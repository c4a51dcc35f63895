"""Make exercises by a recipe: stories of several forms, among book sentences or alone."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from data_prep import load_tokenizer
from data_prep.errors import DataError
from evaluation.babilong.background import Background, open_background
from evaluation.babilong.dense import ASKED, TASKS, asked_densely, simulated_facts
from evaluation.babilong.encoding import SentenceEncoder, Turn, turns_of
from evaluation.babilong.lengths import context_tokens
from evaluation.babilong.material import Material, load_material
from evaluation.babilong.noise import Noise
from evaluation.babilong.randomness import Keyed
from evaluation.babilong.simulator import tell_story
from evaluation.babilong.stories import Story, permuted, single, story_of

Form = Literal["single", "story", "dense"]
T = TypeVar("T")
SHORT = "short"  # a length: the beginnings of stories, to learn from first
_SHORT = 5  # most facts of such a beginning
_TRIES = 1000  # stories that are tried for one that fits


@dataclass(frozen=True)
class Recipe:
    """The composition of exercises. Shares need not add up to 1.

    forms: form -> share. single: one question at a story's end; story: all of a story's own questions; dense:
        questions of every kind after any fact.
    simulated: share of simulated stories; the others are those of bAbI's training files.
    permute: exchange people, rooms and objects in the files' stories (`stories.permuted`).
    noise: N -> share: among facts and questions are book sentences of 0 … N tokens, evenly drawn.
    asked: in dense stories, the share of facts after which a question follows.
    """

    tasks: tuple[str, ...]
    forms: dict[Form, float] = field(default_factory=lambda: {"dense": 1.0})
    simulated: float = 0.5
    permute: bool = True
    noise: dict[int, float] = field(default_factory=lambda: {0: 1.0})
    asked: float = ASKED

    def __hash__(self) -> int:
        return hash(repr(self))

    def __post_init__(self) -> None:
        """Raise `DataError` for invalid shares, and for tasks without dense stories."""
        given: dict[str, Mapping[Any, float]] = {"forms": self.forms, "noise": self.noise}
        for name, shares in given.items():
            if not sum(shares.values()) > 0 or min(shares.values()) < 0:
                raise DataError(f"{name}: shares are {shares}; none may be below 0 and one must be above")
        for name, share in (("simulated", self.simulated), ("asked", self.asked)):
            if not 0 <= share <= 1:
                raise DataError(f"{name}: is {share}; a share is from 0 to 1")
        if self.forms.get("dense") and not self.asked:
            raise DataError("asked: is 0; a dense story needs questions: raise it, or leave out the form dense")
        if self.forms.get("dense") and (without := [task for task in self.tasks if task not in TASKS]):
            raise DataError(f"tasks: {without[0]} has no dense stories; leave it out, or the form dense")


class ExerciseMaker:
    """Makes the exercises of a recipe, each a pure function of its key.

    Args:
        background: books for the noise; None: no noise.

    Raises:
        DataError: the recipe asks for noise without a background.
    """

    def __init__(
        self, recipe: Recipe, material: Material, encoder: SentenceEncoder, background: Background | None
    ) -> None:
        if background is None and any(most and share for most, share in recipe.noise.items()):
            raise DataError("--background: is missing, but the recipe has noise; pass a folder of books")
        self.material, self.encoder, self.background = material, encoder, background
        self.recipe, self._noise = recipe, Noise(background, encoder) if background else None

    def turns(self, task: str, rng: Keyed) -> list[Turn]:
        """Return an exercise's turns, with the recipe's noise."""
        story = self._story(task, rng)
        return self._hidden(story, rng.below(drawn(self.recipe.noise, rng) + 1), rng)

    def short_turns(self, task: str, rng: Keyed) -> list[Turn]:
        """Return the first 2 to 5 facts of a story, with their questions and without noise.

        Raises:
            DataError: no story of the recipe's forms has a question so early.
        """
        for _ in range(_TRIES):
            story = self._story(task, rng).beginning(2 + rng.below(_SHORT - 1)).without(())
            if story.items:
                return self._hidden(story, 0, rng)
        raise DataError(f"--lengths: {SHORT} has no story of {task}; use --form dense, or leave this length out")

    def turns_of_length(self, task: str, least: int, most: int, longest: int, rng: Keyed) -> list[Turn]:
        """Return an exercise with as much noise as a sample of `least` … `most` tokens has in the evaluation.

        A story's earlier questions and answers count like facts. Stories are whole, because their last questions are
        the hardest: one that is too long for `most` tokens is left out. most 0: a story without noise, which is not too
        long for `longest` tokens (0: of any length).

        Raises:
            DataError: no story fits.
        """
        tokens, limit = context_tokens(least + rng.below(most - least + 1)), context_tokens(most or longest)
        for _ in range(_TRIES):
            story = self._story(task, rng)
            size = self._size(story)
            if size <= limit or not limit:
                return self._hidden(story, tokens - size, rng)
        raise DataError(
            f"--lengths: no story of {task} fits into {most or longest} tokens; leave the shortest lengths out"
        )

    def _size(self, story: Story) -> int:
        """Return the number of a story's tokens before its last question."""
        turns = turns_of(story, (), [0] * (len(story.items) - 1))
        _, answers = self.encoder.exercise(turns)
        return answers[-1][0] - 1 - len(self.encoder.alone(f"\n{turns[-1].question}\n"))

    def _hidden(self, story: Story, tokens: int, rng: Keyed) -> list[Turn]:
        """Return the story's turns with book sentences of `tokens` tokens, all before the last question."""
        noise = self._noise.sentences(tokens, rng) if self._noise else []
        gaps = sorted(rng.below(len(noise) + 1) for _ in story.items[1:])
        return turns_of(story, noise, gaps)

    def _story(self, task: str, rng: Keyed) -> Story:
        """Return a story with at least one question."""
        for _ in range(_TRIES):  # all questions of a story may be held out
            story = self._tried(task, drawn(self.recipe.forms, rng), rng)
            if story.items:
                return story
        raise DataError(
            f"--babi: the test and valid files of {task} have all questions of its stories; use other files"
        )

    def _tried(self, task: str, form: Form, rng: Keyed) -> Story:
        recipe, held_out, draws = self.recipe, self.material.held_out, random.Random(rng.below(1 << 53))
        own = None if recipe.simulated and rng.share() < recipe.simulated else self.material.story(task, rng)
        if own is not None and recipe.permute:
            own = permuted(own, task, draws)
        if form == "dense":
            facts = simulated_facts(task, draws) if own is None else own.facts
            story = asked_densely(facts, task, draws, held_out, recipe.asked)
        else:
            story = story_of(tell_story(task, rng)) if own is None else own
        story = story.without(held_out, own is None)
        return single(story, rng) if form == "single" and story.questions else story


def drawn(shares: Mapping[T, float], rng: Keyed) -> T:
    """Return a random key, with its share as probability."""
    keys, drawn = list(shares), rng.share() * sum(shares.values())
    for key in keys:
        drawn -= shares[key]
        if drawn < 0:
            break
    return key


@dataclass(frozen=True)
class Places:
    """The files from which a process makes exercises.

    babi, books: arguments of `load_material` and `open_background`; books None: no noise.
    """

    tokenizer: Path
    babi: str | None = None
    books: tuple[str, ...] | None = None


@lru_cache(maxsize=1)
def open_maker(places: Places, recipe: Recipe) -> ExerciseMaker:
    """Return a process's exercise maker, which is opened once. Raises `DataError` when a file is missing."""
    background = None if places.books is None else open_background(places.books)
    material = load_material(places.babi, recipe.tasks)
    return ExerciseMaker(recipe, material, SentenceEncoder(load_tokenizer(places.tokenizer)), background)
