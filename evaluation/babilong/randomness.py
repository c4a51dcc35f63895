"""Numbers that depend on a key alone: the same on every machine, in every version of Python."""

import random
from collections.abc import Sequence
from typing import TypeVar

import xxhash

T = TypeVar("T")


class Keyed:
    """A stream of random numbers named by `key`.

    Only `random.random()` is used, whose numbers Python promises never to change; no hash, no order of a set.
    """

    def __init__(self, *key: str | int) -> None:
        self._random = random.Random(xxhash.xxh3_64_intdigest("\0".join(map(str, key)).encode()))

    def share(self) -> float:
        """In [0, 1)."""
        return self._random.random()

    def below(self, limit: int) -> int:
        """One of 0 … limit - 1."""
        return int(self._random.random() * limit)

    def choice(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def order(self, count: int) -> list[int]:
        """0 … count - 1, shuffled."""
        keys = [self._random.random() for _ in range(count)]
        return sorted(range(count), key=keys.__getitem__)
