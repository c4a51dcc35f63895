"""Simulate facts and questions like those of bAbI's qa1–qa10, for machines without bAbI's files.

A `World` reads a story and answers its questions. A question's text, with the facts before it, determines whether it is
for training or for evaluation, so the two never share one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from evaluation.babilong.facts import Question
from evaluation.babilong.randomness import Keyed
from evaluation.babilong.tasks import OBJECTS, ROOMS
from evaluation.babilong.world import DROPS, GIVES, MOVES, OPPOSITE, TAKES, World

Part = Literal["train", "test"]
HELD_OUT = 10  # one of this many identities belongs to "test"

_HOUSE = ("Daniel", "John", "Mary", "Sandra")
_GIVERS = ("Bill", "Fred", "Jeff", "Mary")
_TOWN = ("bedroom", "cinema", "kitchen", "office", "park", "school")
Ask = Callable[[World, Keyed, "Script"], str]


@dataclass(frozen=True)
class Script:
    """The composition of a task's stories: people, rooms, events with weights, questions and the facts before each."""

    ask: Ask
    people: tuple[str, ...] = _HOUSE
    rooms: tuple[str, ...] = ROOMS
    events: tuple[tuple[str, int], ...] = (("move", 1),)
    facts: tuple[int, int] = (2, 2)  # fewest and most facts before each question
    questions: int = 5

    @cached_property
    def kinds(self) -> list[str]:
        """The kinds of events, each repeated by its weight."""
        return [kind for kind, weight in self.events for _ in range(weight)]


def simulate(task: str, seed: int, part: Part) -> Iterator[Question]:
    """Yield questions without end, each of another story; a pure function of the arguments.

    In a small world two stories may be equal, as in bAbI.
    """
    number = 0
    while True:
        rng = Keyed("story", task, seed, number)
        question = rng.choice(tell_story(task, rng))
        if (question.identity % HELD_OUT == 0) == (part == "test"):
            yield question
        number += 1


def tell_story(task: str, rng: Keyed) -> list[Question]:
    """Return a story's questions, in order: one for qa4 and qa3, five for the others."""
    return [_relations(rng)] if task == "qa4" else _story(SCRIPTS[task], rng)


def _story(script: Script, rng: Keyed) -> list[Question]:
    world, facts, questions = World(), list[str](), list[Question]()
    while len(questions) < script.questions:
        least, most = script.facts
        for _ in range(least + rng.below(most - least + 1)):
            facts.append(event(script, world, rng))
            world.tell(facts[-1])
        answer = None
        while answer is None:
            question = script.ask(world, rng, script)
            answer = world.ask(question)
            if answer is None:  # no question can be answered yet
                facts.append(event(script, world, rng))
                world.tell(facts[-1])
        questions.append(Question(tuple(facts), question, answer))
    return questions


def event(script: Script, world: World, rng: Keyed) -> str:
    """Return a random event that is possible in the world, as a sentence."""
    while True:
        sentence = _EVENTS[rng.choice(script.kinds)](script, world, rng.choice(script.people), rng)
        if sentence is not None:
            return sentence


def _move(script: Script, world: World, person: str, rng: Keyed) -> str | None:
    room = rng.choice(script.rooms)
    return None if world.room(person) == room else f"{person} {rng.choice(MOVES)} the {room}."


def _is_in(script: Script, world: World, person: str, rng: Keyed) -> str | None:
    return f"{person} is in the {rng.choice(script.rooms)}."


def _is_not_in(script: Script, world: World, person: str, rng: Keyed) -> str | None:
    if (room := world.room(person)) is not None and rng.share() < 0.7:
        return f"{person} is no longer in the {room}."
    return f"{person} is not in the {rng.choice(script.rooms)}."


def _either(script: Script, world: World, person: str, rng: Keyed) -> str | None:
    first, second = rng.order(len(script.rooms))[:2]
    return f"{person} is either in the {script.rooms[first]} or the {script.rooms[second]}."


def _take(script: Script, world: World, person: str, rng: Keyed) -> str | None:
    room = world.room(person)
    free = [thing for thing in OBJECTS if thing not in world.holder]
    here = [thing for thing in free if not world.been.get(thing) or world.been[thing][-1] == room]
    if room is None or not here:
        return None
    return f"{person} {rng.choice(TAKES)} the {rng.choice(here)} there."


def _drop(script: Script, world: World, person: str, rng: Keyed) -> str | None:
    held = world.carried(person)
    if not held:
        return None
    return f"{person} {rng.choice(DROPS)} the {rng.choice(held)}{' there' if rng.share() < 0.2 else ''}."


def _give(script: Script, world: World, person: str, rng: Keyed) -> str | None:
    held, room = world.carried(person), world.room(person)
    near = [other for other in script.people if other != person and world.room(other) == room]
    if not held or not near:
        return None
    return f"{person} {rng.choice(GIVES)} the {rng.choice(held)} to {rng.choice(near)}."


_EVENTS = {
    "move": _move,
    "is in": _is_in,
    "is not in": _is_not_in,
    "either": _either,
    "take": _take,
    "drop": _drop,
    "give": _give,
}


def _where_is(world: World, rng: Keyed, script: Script) -> str:
    known = [person for person in script.people if world.room(person)]
    return f"Where is {rng.choice(known)}?" if known else ""


def _where_is_it(world: World, rng: Keyed, script: Script) -> str:
    known = [thing for thing in OBJECTS if world.been.get(thing)]
    return f"Where is the {rng.choice(known)}?" if known else ""


def _where_was_it(world: World, rng: Keyed, script: Script) -> str:
    known = [thing for thing in OBJECTS if len(world.been.get(thing, ())) > 1]
    if not known:
        return ""
    thing = rng.choice(known)
    return f"Where was the {thing} before the {rng.choice(world.been[thing][1:])}?"


def _is_she_in(world: World, rng: Keyed, script: Script) -> str:
    """Ask about a person's room; half of the questions name a room that a fact told."""
    known = [person for person in script.people if person in world.may_be or person in world.not_in]
    if not known:
        return ""
    person = rng.choice(known)
    told = world.may_be.get(person) or (world.not_in[person],)
    return f"Is {person} in the {rng.choice(told if rng.share() < 0.5 else script.rooms)}?"


def _about_carrying(question: str) -> Ask:
    def ask(world: World, rng: Keyed, script: Script) -> str:
        active = [person for person in script.people if person in world.taken]
        return question.format(rng.choice(active)) if active else ""

    return ask


def _about_gifts(world: World, rng: Keyed, script: Script) -> str:
    if not world.gifts:
        return ""
    giver, thing, receiver = world.gifts[-1 - rng.below(min(2, len(world.gifts)))]
    what = f"What did {giver} give to {receiver}?"
    forms = (
        what,
        what,  # twice as frequent, as in bAbI
        f"Who gave the {thing}?",
        f"Who gave the {thing} to {receiver}?",
        f"Who received the {thing}?",
        f"Who did {giver} give the {thing} to?",
    )
    return rng.choice(forms)


def _relations(rng: Keyed) -> Question:
    """Return a question of qa4, about three rooms of which the middle one is next to both others."""
    first, middle, last = (ROOMS[index] for index in rng.order(len(ROOMS))[:3])
    one, two = (rng.choice(tuple(OPPOSITE)) for _ in range(2))
    while OPPOSITE[one] == two:  # both other rooms would be in the same place
        two = rng.choice(tuple(OPPOSITE))
    facts = [relation(first, one, middle, rng), relation(middle, two, last, rng)]
    if rng.share() < 0.5:
        facts.reverse()
    world = World()
    for fact in facts:
        world.tell(fact)
    asked, direction = (middle, one) if rng.share() < 0.5 else (last, two)
    forms = (f"What is {direction} of the {asked}?", f"What is the {asked} {OPPOSITE[direction]} of?")
    question = rng.choice(forms)
    return Question(tuple(facts), question, str(world.ask(question)))


def relation(one: str, direction: str, other: str, rng: Keyed) -> str:
    """Return the sentence that `one` is `direction` of `other`, or its converse."""
    if rng.share() < 0.5:
        return f"The {one} is {direction} of the {other}."
    return f"The {other} is {OPPOSITE[direction]} of the {one}."


_THINGS = (("move", 4), ("take", 2), ("drop", 1))
_LOOSE = (("move", 4), ("take", 2), ("drop", 2))
SCRIPTS = {
    "qa1": Script(_where_is),
    "qa2": Script(_where_is_it, events=_THINGS, facts=(2, 7)),
    "qa3": Script(_where_was_it, events=_THINGS, facts=(4, 80), questions=1),
    "qa5": Script(_about_gifts, people=_GIVERS, events=(*_THINGS, ("give", 6)), facts=(2, 12)),
    "qa6": Script(_is_she_in, events=(("move", 8), ("take", 2), ("drop", 1)), facts=(2, 3)),
    "qa7": Script(_about_carrying("How many objects is {} carrying?"), events=(*_LOOSE, ("give", 4)), facts=(2, 4)),
    "qa8": Script(_about_carrying("What is {} carrying?"), events=_LOOSE, facts=(2, 4)),
    "qa9": Script(_is_she_in, events=(("move", 2), ("is in", 1), ("is not in", 1))),
    "qa10": Script(
        _is_she_in,
        people=("Bill", "Fred", "Julie", "Mary"),
        rooms=_TOWN,
        events=(("move", 2), ("is in", 1), ("either", 1)),
    ),
}
