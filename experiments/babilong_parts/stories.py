"""Stories with questions of every kind they can answer after any fact, as token ids.

One question a story teaches little: with a question after every second fact, the easy questions (where is a person)
teach the first step of the harder ones (where is an object that a person carries).  Facts come from bAbI's training
files, with names, rooms and objects exchanged consistently within a story, or from the simulator, without end.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.babilong.facts import Question, read_babi
from evaluation.babilong.simulator import simulate
from evaluation.babilong.world import OPPOSITE, World

TASKS = ("qa1", "qa2", "qa3", "qa4", "qa5")
_GROUPS = (
    ("Daniel", "John", "Mary", "Sandra"),
    ("Bill", "Fred", "Jeff", "Mary"),
    ("apple", "football", "milk"),
    ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office"),
)
RELATIONS = 1  # questions of a story of qa4, as in bAbI: an answer given helps with the next ones
_WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class Material:
    """facts: of each task, the stories of bAbI's training file; held_out: identities of questions to evaluate with."""

    facts: dict[str, list[tuple[str, ...]]]
    held_out: frozenset[int]


def load_material(folder: Path, tasks: Sequence[str] = TASKS) -> Material:
    """Read FOLDER/TASK_train.txt, and what may not be learned from FOLDER/TASK_test.txt or TASK_valid.txt.

    Raises `DataError` when a file is missing or is none of bAbI's.
    """
    facts, held_out = {}, set[int]()
    for task in tasks:
        facts[task] = _whole_stories(read_babi(folder / f"{task}_train.txt"))
        for split in ("test", "valid"):
            path = folder / f"{task}_{split}.txt"
            if path.is_file():
                held_out |= {question.identity for question in read_babi(path)}
    return Material(facts, frozenset(held_out))


def _whole_stories(questions: list[Question]) -> list[tuple[str, ...]]:
    """The facts of each story: of the questions that continue each other, the longest."""
    longest: list[tuple[str, ...]] = []
    for question in questions:
        if longest and question.facts[: len(longest[-1])] == longest[-1]:
            longest[-1] = question.facts
        else:
            longest.append(question.facts)
    return longest


@dataclass(frozen=True)
class Turn:
    """A fact, then the questions asked right after it, each with its answer."""

    fact: str
    asked: tuple[tuple[str, str], ...]


def story(task: str, material: Material, rng: random.Random, simulated: float) -> list[Turn]:
    """A story of the task's world with dense questions; a share `simulated` of them the simulator's."""
    if rng.random() < simulated:
        facts = _simulated(task, rng)
    else:
        facts = _permuted(rng.choice(material.facts[task]), task, rng)
    if task == "qa4":
        return _relations(facts, material.held_out, rng)
    world, turns, told, answered = World(), list[Turn](), list[str](), Answered()
    for fact in facts:
        world.tell(fact)
        told.append(fact)
        asked = list[tuple[str, str]]()
        if rng.random() < 0.5 and (question := _question(task, world, answered, rng)):
            answer = world.ask(question)
            held_out = Question(tuple(told), question, "").identity in material.held_out
            if answer is not None and not held_out and answered.add(question, answer):
                asked.append((question, answer))
        turns.append(Turn(fact, tuple(asked)))
    return turns


class Answered:
    """What a story has answered already: a question whose answer can be copied from an earlier one teaches nothing."""

    def __init__(self) -> None:
        self._answers: dict[str, str] = {}
        self.gifts = set[tuple[str, str, str]]()

    def add(self, question: str, answer: str) -> bool:
        """Note an answer.  Returns False when the story gave the same one to the same question before."""
        new = self._answers.get(question) != answer
        self._answers[question] = answer
        return new


def _simulated(task: str, rng: random.Random) -> Sequence[str]:
    if task == "qa1" and rng.random() < 0.5:  # qa1's people among qa2's events
        task = "qa2"
    return next(simulate(task, rng.getrandbits(62), "train")).facts


def _permuted(facts: Sequence[str], task: str, rng: random.Random) -> list[str]:
    people = _GROUPS[1] if task == "qa5" else _GROUPS[0]
    exchanged: dict[str, str] = {}
    for names in (people, *_GROUPS[2:]):
        exchanged |= zip(names, rng.sample(names, len(names)), strict=True)
    return [_WORD.sub(lambda word: exchanged.get(word[0], word[0]), fact) for fact in facts]


def _question(task: str, world: World, answered: Answered, rng: random.Random) -> str | None:
    """A question of a random kind among those the world can answer; the task's own kind as often as all others."""
    people = [person for person in world.may_be if world.room(person)]
    things = [thing for thing, rooms in world.been.items() if rooms]
    moved = [thing for thing in things if len(world.been[thing]) > 1]
    gifts = [gift for gift in world.gifts[-2:] if gift not in answered.gifts]
    kinds: dict[str, bool] = {
        "qa1": bool(people),
        "qa2": bool(things),
        "qa3": bool(moved),
        "qa5": bool(gifts) and task == "qa5",
    }
    possible = [kind for kind, there in kinds.items() if there]
    if not possible:
        return None
    kind = task if kinds.get(task) and rng.random() < 0.5 else rng.choice(possible)
    if kind == "qa1":
        return f"Where is {rng.choice(people)}?"
    if kind == "qa2":
        return f"Where is the {rng.choice(moved if moved and rng.random() < 0.5 else things)}?"
    if kind == "qa3":
        thing = rng.choice(moved)
        return f"Where was the {thing} before the {rng.choice(world.been[thing][1:])}?"
    giver, thing, receiver = gift = rng.choice(gifts)
    answered.gifts.add(gift)
    forms = (
        f"What did {giver} give to {receiver}?",
        f"What did {giver} give to {receiver}?",
        f"Who gave the {thing}?",
        f"Who gave the {thing} to {receiver}?",
        f"Who received the {thing}?",
        f"Who did {giver} give the {thing} to?",
    )
    return rng.choice(forms)


def _relations(facts: Sequence[str], held_out: frozenset[int], rng: random.Random) -> list[Turn]:
    """qa4: two facts, then some of the questions they answer: each answer given says more about those that follow."""
    world = World()
    for fact in facts:
        world.tell(fact)
    questions = []
    for one, direction, other in world.relations:
        questions += [f"What is {direction} of the {other}?", f"What is the {one} {direction} of?"]
        questions += [f"What is {OPPOSITE[direction]} of the {one}?", f"What is the {other} {OPPOSITE[direction]} of?"]
    rng.shuffle(questions)
    asked = []
    for question in questions:
        answer = world.ask(question)
        if answer is not None and Question(tuple(facts), question, "").identity not in held_out:
            asked.append((question, answer))
    return [*(Turn(fact, ()) for fact in facts[:-1]), Turn(facts[-1], tuple(asked[:RELATIONS]))]
