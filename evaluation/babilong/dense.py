"""Dense stories: after any fact may follow a question of any kind that the facts so far answer."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import pairwise

import xxhash

from evaluation.babilong.randomness import Keyed
from evaluation.babilong.simulator import HELD_OUT, SCRIPTS, event, relation
from evaluation.babilong.stories import Asked, Story
from evaluation.babilong.tasks import ROOMS
from evaluation.babilong.world import OPPOSITE, World

ASKED = 0.5  # share of the facts that a question follows
_MOVED = 0.5  # least share of questions about an object that was carried to another room
_RECENT = 4  # last gifts that questions are about
_TRIES = 20
Kind = Callable[[World, Keyed], str | None]
# least and most facts of a simulated story
FACTS = {"qa1": (4, 16), "qa2": (6, 48), "qa3": (8, 100), "qa4": (2, 5), "qa5": (6, 60)}


def simulated(task: str, rng: Keyed, unwanted: Container[int] = (), share: float = ASKED) -> Story:
    """Return a simulated story of the task's world with dense questions.

    No question, with the facts before it, is in `unwanted` or among those that the simulator keeps for evaluation.
    """
    least, most = FACTS[task]
    count = least + rng.below(most - least + 1)
    facts = _neighbours(count, rng) if task == "qa4" else _events(task, count, rng)
    return asked_densely(facts, task, rng, unwanted, True, share)


def asked_densely(
    facts: Iterable[str], task: str, rng: Keyed, unwanted: Container[int], held_out: bool, share: float = ASKED
) -> Story:
    """Return the facts, with a question of a random kind after a share of them, up to the last question.

    unwanted, held_out: questions that are left out, see `Story.without`.
    """
    world, text, items = World(), "", list[str | Asked]()
    kinds, end = KINDS[task], 0
    for fact in facts:
        world.tell(fact)
        items.append(fact)
        text += fact + "\n"
        if rng.share() < share:
            question = _allowed_question(world, kinds, text, rng, unwanted, held_out)
            if question is not None:
                items.append(Asked(question, str(world.ask(question))))
                end = len(items)
    return Story(tuple(items[:end]))


def _allowed_question(
    world: World, kinds: Sequence[Kind], text: str, rng: Keyed, unwanted: Container[int], held_out: bool
) -> str | None:
    """Return a question of a random kind that the world answers, or None when no allowed one is found."""
    for _ in range(_TRIES):
        kind = rng.choice(kinds)
        question = kind(world, rng)
        if question is None:
            possible = [other for other in kinds if other(world, rng) is not None]
            if not possible:
                return None
            question = rng.choice(possible)(world, rng)
        if question is not None and world.ask(question) is not None:
            identity = xxhash.xxh3_64_intdigest((text + question).encode())
            if identity not in unwanted and not (held_out and identity % HELD_OUT == 0):
                return question
    return None


def _events(task: str, count: int, rng: Keyed) -> Iterator[str]:
    script, world = SCRIPTS[task], World()
    for _ in range(count):
        fact = event(script, world, rng)
        world.tell(fact)
        yield fact


def _neighbours(count: int, rng: Keyed) -> list[str]:
    """Return facts about rooms on a path that does not cross itself, each about two neighbours, in random order."""
    steps = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
    rooms = [ROOMS[index] for index in rng.order(len(ROOMS))[: count + 1]]
    place, used, facts = (0, 0), {(0, 0)}, list[str]()
    for before, room in pairwise(rooms):
        free = [d for d, (x, y) in steps.items() if (place[0] + x, place[1] + y) not in used]
        if not free:
            break
        direction = rng.choice(free)
        place = place[0] + steps[direction][0], place[1] + steps[direction][1]
        used.add(place)
        facts.append(relation(room, direction, before, rng))
    return [facts[index] for index in rng.order(len(facts))]


def _person(world: World, rng: Keyed) -> str | None:
    people = [person for person, rooms in world.may_be.items() if len(rooms) == 1]
    return f"Where is {rng.choice(people)}?" if people else None


def _object(world: World, rng: Keyed) -> str | None:
    """Ask at least half of the time about an object that was carried to another room, when there is one."""
    known = [thing for thing, rooms in world.been.items() if rooms]
    if not known:
        return None
    moved = [thing for thing, rooms in world.been.items() if len(rooms) > 1]
    return f"Where is the {rng.choice(moved if moved and rng.share() < _MOVED else known)}?"


def _before(world: World, rng: Keyed) -> str | None:
    moved = [thing for thing, rooms in world.been.items() if len(rooms) > 1]
    if not moved:
        return None
    thing = rng.choice(moved)
    return f"Where was the {thing} before the {rng.choice(world.been[thing][1:])}?"


def _gift(form: str) -> Kind:
    def ask(world: World, rng: Keyed) -> str | None:
        if not world.gifts:
            return None
        giver, thing, receiver = world.gifts[-1 - rng.below(min(_RECENT, len(world.gifts)))]
        return form.format(giver=giver, thing=thing, receiver=receiver)

    return ask


def _relation(form: str) -> Kind:
    """Return a kind of question; form: the answer lies {to} of {room}, and {back} is the opposite direction."""

    def ask(world: World, rng: Keyed) -> str | None:
        one, direction, other = rng.choice(world.relations)
        if rng.share() < 0.5:
            return form.format(room=other, to=direction, back=OPPOSITE[direction])
        return form.format(room=one, to=OPPOSITE[direction], back=direction)

    return ask


_GIFTS = (
    _gift("What did {giver} give to {receiver}?"),
    _gift("Who gave the {thing}?"),
    _gift("Who gave the {thing} to {receiver}?"),
    _gift("Who received the {thing}?"),
    _gift("Who did {giver} give the {thing} to?"),
)
KINDS: dict[str, tuple[Kind, ...]] = {
    "qa1": (_person,),
    "qa2": (_person, _object),
    "qa3": (_person, _object, _before),
    "qa4": (_relation("What is {to} of the {room}?"), _relation("What is the {room} {back} of?")),
    "qa5": (_person, _object, _before, *_GIFTS),
}
