"""Whole stories: facts and questions in order."""

import random
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evaluation.babilong.facts import Question
from evaluation.babilong.randomness import Keyed
from evaluation.babilong.simulator import HELD_OUT, SCRIPTS
from evaluation.babilong.tasks import OBJECTS

_WORD = re.compile(r"[A-Za-z]+")


class Asked(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Story:
    """A story; items: its facts (str) and questions, in order."""

    items: tuple[str | Asked, ...]

    @property
    def facts(self) -> tuple[str, ...]:
        return tuple(item for item in self.items if isinstance(item, str))

    @property
    def questions(self) -> list[Question]:
        """Each question with the facts before it."""
        facts, questions = list[str](), list[Question]()
        for item in self.items:
            if isinstance(item, str):
                facts.append(item)
            else:
                questions.append(Question(tuple(facts), item.question, item.answer))
        return questions

    def without(self, unwanted: Container[int], held_out: bool = False) -> "Story":
        """Return the story without questions whose identity is unwanted, up to the last of the other questions.

        held_out: also leave out those that the simulator keeps for evaluation.
        """
        kept, questions = list[str | Asked](), iter(self.questions)
        for item in self.items:
            if not isinstance(item, str):
                identity = next(questions).identity
                if identity in unwanted or (held_out and identity % HELD_OUT == 0):
                    continue
            kept.append(item)
        while kept and isinstance(kept[-1], str):
            kept.pop()
        return Story(tuple(kept))

    def beginning(self, facts: int) -> "Story":
        """Return the first `facts` facts, with the questions that are asked before the next one."""
        places = [place for place, item in enumerate(self.items) if isinstance(item, str)]
        return Story(self.items[: places[facts]]) if facts < len(places) else self


def story_of(questions: Sequence[Question]) -> Story:
    """Return the story of questions, the facts of each of which begin with the facts of the one before."""
    items, told = list[str | Asked](), 0
    for question in questions:
        items += question.facts[told:]
        told = len(question.facts)
        items.append(Asked(question.question, question.answer))
    return Story(tuple(items))


def stories_of(questions: Iterable[Question]) -> list[Story]:
    """Return the stories of a bAbI file's questions, without facts after a story's last question."""
    stories, story = list[Story](), list[Question]()
    for question in questions:
        if story and not _goes_on(story[-1], question):
            stories.append(story_of(story))
            story = []
        story.append(question)
    return [*stories, story_of(story)] if story else stories


def _goes_on(earlier: Question, later: Question) -> bool:
    return later.facts[: len(earlier.facts)] == earlier.facts


def permuted(story: Story, task: str, rng: random.Random) -> Story:
    """Return the story with people, objects and rooms of the task's world permuted, each kind among itself.

    Questions and answers are permuted too, so that the answers stay right.
    """
    exchanged = dict[str, str]()
    world = SCRIPTS.get(task, SCRIPTS["qa1"])  # qa4 has only rooms, those of qa1
    for names in (world.people, OBJECTS, world.rooms):
        exchanged |= zip(names, rng.sample(names, len(names)), strict=True)

    def exchange(text: str) -> str:
        return _WORD.sub(lambda word: exchanged.get(word[0], word[0]), text)

    return Story(
        tuple(exchange(item) if isinstance(item, str) else Asked(*map(exchange, item)) for item in story.items)
    )


def single(story: Story, rng: Keyed) -> Story:
    """Return the story of one random question, with the facts before it."""
    question = rng.choice(story.questions)
    return Story((*question.facts, Asked(question.question, question.answer)))
