"""Dense stories: after any fact may follow a question of any kind that the facts so far answer.

One question a story teaches little. With a question after every second fact, the easy questions (where is a person)
teach the first step of the harder ones (where is an object that a person carries).
"""

import random
from collections.abc import Container, Sequence

from evaluation.babilong.facts import Question
from evaluation.babilong.simulator import simulate
from evaluation.babilong.stories import Asked, Story
from evaluation.babilong.world import OPPOSITE, World

TASKS = ("qa1", "qa2", "qa3", "qa4", "qa5")
ASKED = 0.5  # share of the facts that a question follows
RELATIONS = 1  # questions of a story of qa4, as in bAbI: an answer given helps with the next ones
_RECENT = 2  # last gifts that questions are about
_GIFTS = (
    "What did {giver} give to {receiver}?",
    "What did {giver} give to {receiver}?",  # twice as frequent, as in bAbI
    "Who gave the {thing}?",
    "Who gave the {thing} to {receiver}?",
    "Who received the {thing}?",
    "Who did {giver} give the {thing} to?",
)


def simulated_facts(task: str, rng: random.Random) -> tuple[str, ...]:
    """Return the facts of a simulated story; half of qa1's have qa2's events, in which people also carry objects."""
    if task == "qa1" and rng.random() < 0.5:
        task = "qa2"
    return next(simulate(task, rng.getrandbits(62), "train")).facts


def asked_densely(
    facts: Sequence[str], task: str, rng: random.Random, unwanted: Container[int] = (), share: float = ASKED
) -> Story:
    """Return a story of all facts, with a question after a share of them; in qa4 `RELATIONS` questions follow the last.

    unwanted: identities of questions that are left out.
    """
    if task == "qa4":
        return _relations(facts, rng, unwanted)
    world, items, told = World(), list[str | Asked](), list[str]()
    for fact in facts:
        world.tell(fact)
        told.append(fact)
        items.append(fact)
        if rng.random() < share and (question := _question(task, world, rng)):
            items += _allowed(told, [question], world, unwanted)
    return Story(tuple(items))


def _allowed(facts: Sequence[str], questions: Sequence[str], world: World, unwanted: Container[int]) -> list[Asked]:
    """Return those of the questions that the world answers and that are not unwanted after these facts."""
    answers = [(question, world.ask(question)) for question in questions]
    return [
        Asked(question, answer)
        for question, answer in answers
        if answer is not None and Question(tuple(facts), question, answer).identity not in unwanted
    ]


def _question(task: str, world: World, rng: random.Random) -> str | None:
    """Return a question of a random kind among those the world can answer; half of the time of the task's own kind."""
    people = [person for person in world.may_be if world.room(person)]
    things = [thing for thing, rooms in world.been.items() if rooms]
    moved = [thing for thing in things if len(world.been[thing]) > 1]
    gifts = world.gifts if task == "qa5" else []
    there = {"qa1": people, "qa2": things, "qa3": moved, "qa5": gifts}
    possible = [kind for kind, subjects in there.items() if subjects]
    if not possible:
        return None
    kind = task if there[task] and rng.random() < 0.5 else rng.choice(possible)
    if kind == "qa1":
        return f"Where is {rng.choice(people)}?"
    if kind == "qa2":  # at least half of the time about an object that was carried to another room
        return f"Where is the {rng.choice(moved if moved and rng.random() < 0.5 else things)}?"
    if kind == "qa3":
        thing = rng.choice(moved)
        return f"Where was the {thing} before the {rng.choice(world.been[thing][1:])}?"
    giver, thing, receiver = rng.choice(gifts[-_RECENT:])
    return rng.choice(_GIFTS).format(giver=giver, thing=thing, receiver=receiver)


def _relations(facts: Sequence[str], rng: random.Random, unwanted: Container[int]) -> Story:
    world, questions = World(), list[str]()
    for fact in facts:
        world.tell(fact)
    for one, direction, other in world.relations:
        questions += [f"What is {direction} of the {other}?", f"What is the {one} {direction} of?"]
        questions += [f"What is {OPPOSITE[direction]} of the {one}?", f"What is the {other} {OPPOSITE[direction]} of?"]
    rng.shuffle(questions)
    return Story((*facts, *_allowed(facts, questions, world, unwanted)[:RELATIONS]))
