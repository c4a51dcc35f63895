"""What follows from facts: a world that is told bAbI's sentences and answers its questions (qa1–qa10)."""

import re
from dataclasses import dataclass, field

OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
MOVES = ("moved to", "journeyed to", "travelled to", "went to", "went back to")
TAKES = ("picked up", "got", "grabbed", "took")
DROPS = ("left", "discarded", "dropped", "put down")
GIVES = ("gave", "passed", "handed")
NUMBERS = ("none", "one", "two", "three")


def _any(phrases: tuple[str, ...]) -> str:
    return "|".join(phrases)


_MOVE = re.compile(rf"(\w+) (?:{_any(MOVES)}) the (\w+)")
_TAKE = re.compile(rf"(\w+) (?:{_any(TAKES)}) the (\w+)(?: there)?")
_DROP = re.compile(rf"(\w+) (?:{_any(DROPS)}) the (\w+)(?: there)?")
_GIVE = re.compile(rf"(\w+) (?:{_any(GIVES)}) the (\w+) to (\w+)")
_IS_IN = re.compile(r"(\w+) is in the (\w+)")
_IS_NOT_IN = re.compile(r"(\w+) is (?:not|no longer) in the (\w+)")
_EITHER = re.compile(r"(\w+) is either in the (\w+) or the (\w+)")
_RELATION = re.compile(rf"The (\w+) is ({_any(tuple(OPPOSITE))}) of the (\w+)")

_WHERE_IS = re.compile(r"Where is (the )?(\w+)")
_WHERE_WAS = re.compile(r"Where was the (\w+) before the (\w+)")
_WHAT_IS_OF = re.compile(rf"What is ({_any(tuple(OPPOSITE))}) of the (\w+)")
_WHAT_IS_IT_OF = re.compile(rf"What is the (\w+) ({_any(tuple(OPPOSITE))}) of")
_IS_SHE_IN = re.compile(r"Is (\w+) in the (\w+)")
_HOW_MANY = re.compile(r"How many objects is (\w+) carrying")
_CARRYING = re.compile(r"What is (\w+) carrying")
_WHAT_GIVEN = re.compile(r"What did (\w+) give to (\w+)")
_WHO_GAVE = re.compile(r"Who gave the (\w+)(?: to (\w+))?")
_WHO_RECEIVED = re.compile(r"Who received the (\w+)")
_TO_WHOM = re.compile(r"Who did (\w+) give the (\w+) to")


@dataclass
class World:
    """Where everybody and everything is, as far as it was told."""

    may_be: dict[str, tuple[str, ...]] = field(default_factory=dict)  # person -> the rooms it can be in
    not_in: dict[str, str] = field(default_factory=dict)  # person -> a room it is not in, and nothing else is known
    holder: dict[str, str] = field(default_factory=dict)  # object -> person
    taken: dict[str, list[str]] = field(default_factory=dict)  # person -> objects, in the order they were first held
    been: dict[str, list[str]] = field(default_factory=dict)  # object -> rooms, in turn
    gifts: list[tuple[str, str, str]] = field(default_factory=list)  # (giver, object, receiver)
    relations: list[tuple[str, str, str]] = field(default_factory=list)  # (room, direction, room): … is … of …

    def room(self, person: str) -> str | None:
        """Where a person is, when that is certain."""
        rooms = self.may_be.get(person, ())
        return rooms[0] if len(rooms) == 1 else None

    def carried(self, person: str) -> list[str]:
        """Objects, in the order in which the person first ever held them: bAbI's order of lists."""
        return [thing for thing in self.taken.get(person, ()) if self.holder.get(thing) == person]

    def tell(self, fact: str) -> None:
        """Raises `ValueError` at a sentence that is none of bAbI's."""
        text = fact.strip().removesuffix(".")
        if found := _EITHER.fullmatch(text):
            self._place(found[1], (found[2], found[3]))
        elif found := _MOVE.fullmatch(text) or _IS_IN.fullmatch(text):
            self._place(found[1], (found[2],))
        elif found := _IS_NOT_IN.fullmatch(text):
            self.may_be.pop(found[1], None)
            self.not_in[found[1]] = found[2]
        elif found := _GIVE.fullmatch(text):
            self._hand(found[2], found[3])
            self.gifts.append((found[1], found[2], found[3]))
        elif found := _TAKE.fullmatch(text):
            self._hand(found[2], found[1])
        elif found := _DROP.fullmatch(text):
            self.holder.pop(found[2], None)
            self._enter(found[2], self.room(found[1]))
        elif found := _RELATION.fullmatch(text):
            self.relations.append((found[1], found[2], found[3]))
        else:
            raise ValueError(f"{fact!r} is no sentence of this world")

    def ask(self, question: str) -> str | None:
        """The answer in bAbI's words, or None when it does not follow from what was told."""
        text = question.strip().removesuffix("?").strip()
        if found := _IS_SHE_IN.fullmatch(text):
            return self._is_in(found[1], found[2])
        if found := _HOW_MANY.fullmatch(text):
            return NUMBERS[len(self.carried(found[1]))]
        if found := _CARRYING.fullmatch(text):
            return ",".join(self.carried(found[1])) or "nothing"
        if found := _WHERE_IS.fullmatch(text):
            return self._thing_room(found[2]) if found[1] else self.room(found[2])
        if found := _WHERE_WAS.fullmatch(text):
            return self._room_before(found[1], found[2])
        if found := _WHAT_IS_OF.fullmatch(text):
            return self._related(found[1], found[2])
        if found := _WHAT_IS_IT_OF.fullmatch(text):
            return self._related(OPPOSITE[found[2]], found[1])
        return self._gift(text)

    def _place(self, person: str, rooms: tuple[str, ...]) -> None:
        self.may_be[person] = rooms
        self.not_in.pop(person, None)
        for thing in self.carried(person):
            self._enter(thing, self.room(person))

    def _hand(self, thing: str, person: str) -> None:
        self.holder[thing] = person
        held = self.taken.setdefault(person, [])
        if thing not in held:
            held.append(thing)
        self._enter(thing, self.room(person))

    def _enter(self, thing: str, room: str | None) -> None:
        rooms = self.been.setdefault(thing, [])
        if room is not None and rooms[-1:] != [room]:
            rooms.append(room)

    def _thing_room(self, thing: str) -> str | None:
        return self.been[thing][-1] if self.been.get(thing) else None

    def _room_before(self, thing: str, room: str) -> str | None:
        rooms = self.been.get(thing, [])
        last = max((index for index, name in enumerate(rooms) if name == room), default=0)
        return rooms[last - 1] if last else None

    def _is_in(self, person: str, room: str) -> str | None:
        rooms = self.may_be.get(person)
        if rooms is None:
            return "no" if self.not_in.get(person) == room else None
        if room not in rooms:
            return "no"
        return "yes" if len(rooms) == 1 else "maybe"

    def _related(self, direction: str, room: str) -> str | None:
        """What is `direction` of `room`."""
        for one, told, other in self.relations:
            if (told, other) == (direction, room):
                return one
            if (OPPOSITE[told], one) == (direction, room):
                return other
        return None

    def _gift(self, text: str) -> str | None:
        """Questions about the last gift that fits."""
        for giver, thing, receiver in reversed(self.gifts):
            if (found := _WHAT_GIVEN.fullmatch(text)) and found.groups() == (giver, receiver):
                return thing
            if (found := _WHO_GAVE.fullmatch(text)) and found[1] == thing and found[2] in (None, receiver):
                return giver
            if (found := _WHO_RECEIVED.fullmatch(text)) and found[1] == thing:
                return receiver
            if (found := _TO_WHOM.fullmatch(text)) and found.groups() == (giver, thing):
                return receiver
        return None


def answer(facts: tuple[str, ...] | list[str], question: str) -> str | None:
    """What follows from the facts, told in their order."""
    world = World()
    for fact in facts:
        world.tell(fact)
    return world.ask(question)
