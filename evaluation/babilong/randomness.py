"""Random numbers that depend on a key alone, equal on every machine and in every version of Python."""

import random
from collections.abc import Sequence
from typing import TypeVar

import xxhash

T = TypeVar("T")


class Keyed:
    """A stream of random numbers that `key` determines.

    It uses only `random.random()`, whose numbers Python promises not to change, and no hash or order of a set.
    """

    def __init__(self, *key: str | int) -> None:
        self._random = random.Random(xxhash.xxh3_64_intdigest("\0".join(map(str, key)).encode()))

    def share(self) -> float:
        """Return a number in [0, 1)."""
        return self._random.random()

    def below(self, limit: int) -> int:
        """Return one of 0 … limit - 1."""
        return int(self._random.random() * limit)

    def choice(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def order(self, count: int) -> list[int]:
        """Return 0 … count - 1, shuffled."""
        keys = [self._random.random() for _ in range(count)]
        return sorted(range(count), key=keys.__getitem__)
