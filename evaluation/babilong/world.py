"""A world that reads facts in bAbI's sentences and answers bAbI's questions (qa1–qa10)."""

import re
from dataclasses import dataclass, field
from functools import lru_cache

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

_WHERE_IS = re.compile(r"Where is (\w+)")
_WHERE_IS_IT = re.compile(r"Where is the (\w+)")
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
    """The places of people and objects, as far as the facts tell them."""

    may_be: dict[str, tuple[str, ...]] = field(default_factory=dict)  # person -> the rooms they can be in
    not_in: dict[str, str] = field(
        default_factory=dict
    )  # person -> a room that they are not in, if nothing else is known
    holder: dict[str, str] = field(default_factory=dict)  # object -> person
    taken: dict[str, list[str]] = field(default_factory=dict)  # person -> objects, in the order they were first held
    been: dict[str, list[str]] = field(default_factory=dict)  # object -> rooms, in order of time
    gifts: list[tuple[str, str, str]] = field(default_factory=list)  # (giver, object, receiver)
    relations: list[tuple[str, str, str]] = field(
        default_factory=list
    )  # (room, direction, room): the first is in this direction of the second

    def room(self, person: str) -> str | None:
        """Return a person's room, or None when it is not certain."""
        rooms = self.may_be.get(person, ())
        return rooms[0] if len(rooms) == 1 else None

    def carried(self, person: str) -> list[str]:
        """Return the objects that a person holds, in the order they first held them, which is bAbI's order of lists."""
        return [thing for thing in self.taken.get(person, ()) if self.holder.get(thing) == person]

    def tell(self, fact: str) -> None:
        """Read a fact. Raises `ValueError` for a sentence that bAbI does not have."""
        kind, words = _parsed(fact)
        if kind in ("move", "is in"):
            self._place(words[0], (words[1],))
        elif kind == "take":
            self._hand(words[1], words[0])
        elif kind == "drop":
            self.holder.pop(words[1], None)
            self._enter(words[1], self.room(words[0]))
        elif kind == "give":
            self._hand(words[1], words[2])
            self.gifts.append((words[0], words[1], words[2]))
        elif kind == "either":
            self._place(words[0], (words[1], words[2]))
        elif kind == "is not in":
            self.may_be.pop(words[0], None)
            self.not_in[words[0]] = words[1]
        else:
            self.relations.append((words[0], words[1], words[2]))

    def ask(self, question: str) -> str | None:
        """Return the answer in bAbI's words, or None when it does not follow from the facts."""
        kind, words = _asked(question)
        if kind == "where is":
            return self.room(words[0])
        if kind == "where is it":
            return self.been[words[0]][-1] if self.been.get(words[0]) else None
        if kind == "where was it":
            return self._room_before(words[0], words[1])
        if kind == "is in":
            return self._is_in(words[0], words[1])
        if kind == "how many":
            return NUMBERS[len(self.carried(words[0]))]
        if kind == "carrying":
            return ",".join(self.carried(words[0])) or "nothing"
        if kind == "what is":
            return self._related(words[0], words[1])
        if kind == "what is it":
            return self._related(OPPOSITE[words[1]], words[0])
        return self._gift(kind, words)

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
        """Return the room that is `direction` of `room`, or None."""
        for one, told, other in self.relations:
            if (told, other) == (direction, room):
                return one
            if (OPPOSITE[told], one) == (direction, room):
                return other
        return None

    def _gift(self, kind: str, words: tuple[str, ...]) -> str | None:
        """Return the answer to a question about gifts, from the last gift that fits, or None."""
        for giver, thing, receiver in reversed(self.gifts):
            if kind == "what given" and words == (giver, receiver):
                return thing
            if kind == "who gave" and words in ((thing,), (thing, receiver)):
                return giver
            if kind == "who received" and words == (thing,):
                return receiver
            if kind == "to whom" and words == (giver, thing):
                return receiver
        return None


_FACTS = (
    ("move", _MOVE),
    ("take", _TAKE),
    ("drop", _DROP),
    ("give", _GIVE),
    ("is in", _IS_IN),
    ("is not in", _IS_NOT_IN),
    ("either", _EITHER),
    ("relation", _RELATION),
)
_QUESTIONS = (
    ("where is", _WHERE_IS),
    ("where is it", _WHERE_IS_IT),
    ("where was it", _WHERE_WAS),
    ("what given", _WHAT_GIVEN),
    ("who gave", _WHO_GAVE),
    ("who received", _WHO_RECEIVED),
    ("to whom", _TO_WHOM),
    ("what is", _WHAT_IS_OF),
    ("what is it", _WHAT_IS_IT_OF),
    ("is in", _IS_SHE_IN),
    ("how many", _HOW_MANY),
    ("carrying", _CARRYING),
)


@lru_cache(maxsize=1 << 16)
def _parsed(fact: str) -> tuple[str, tuple[str, ...]]:
    """Return the kind of a fact and its words. Raises `ValueError` for another sentence."""
    text = fact.strip().removesuffix(".")
    for kind, form in _FACTS:
        if found := form.fullmatch(text):
            return kind, found.groups()
    raise ValueError(f"{fact!r} is not a sentence of this world")


@lru_cache(maxsize=1 << 16)
def _asked(question: str) -> tuple[str, tuple[str, ...]]:
    """Return the kind of a question and its words, or ("", ()) for a question that bAbI does not have."""
    text = question.strip().removesuffix("?").strip()
    for kind, form in _QUESTIONS:
        if found := form.fullmatch(text):
            return kind, tuple(word for word in found.groups() if word is not None)
    return "", ()


def answer(facts: tuple[str, ...] | list[str], question: str) -> str | None:
    """Return the answer that follows from the facts, in their order, or None."""
    world = World()
    for fact in facts:
        world.tell(fact)
    return world.ask(question)
