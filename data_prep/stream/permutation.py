"""A keyed permutation of 0..n-1 without a table: every position is computed by itself."""

import math
from typing import overload

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15

U64 = NDArray[np.uint64]


def mix64(value: int) -> int:
    """Returns splitmix64's finaliser of an integer; each input bit changes about half of the 64 output bits."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _scramble(values: U64, key: int) -> U64:
    """Returns `mix64(value + key)` for an array; the wrapping of uint64 arithmetic is intended."""
    out = values + np.uint64((key + _GOLDEN) & _MASK)
    out ^= out >> np.uint64(30)
    out *= np.uint64(0xBF58476D1CE4E5B9)
    out ^= out >> np.uint64(27)
    out *= np.uint64(0x94D049BB133111EB)
    out ^= out >> np.uint64(31)
    return out


def _feistel(values: U64, rows: int, columns: int, keys: list[int]) -> U64:
    """Returns a bijection of range(rows * columns); each round adds to one digit a function of the other."""
    high, low = values // np.uint64(columns), values % np.uint64(columns)
    for number, key in enumerate(keys):
        if number % 2 == 0:
            high = (high + _scramble(low, key) % np.uint64(rows)) % np.uint64(rows)
        else:
            low = (low + _scramble(high, key) % np.uint64(columns)) % np.uint64(columns)
    return high * np.uint64(columns) + low


@overload
def permute(index: int, n: int, key: int) -> int: ...
@overload
def permute(index: NDArray[np.integer], n: int, key: int) -> NDArray[np.int64]: ...
def permute(index: int | NDArray[np.integer], n: int, key: int) -> int | NDArray[np.int64]:
    """Returns the image of `index` under the permutation `key` of range(n).

    It is a Feistel network on the two digits of rows x columns >= n, with rows and columns near sqrt(n). An image
    outside range(n) is permuted again (cycle walking), which happens to about 1 in sqrt(n). Time and memory per
    position do not depend on n.

    Args:
        index: one integer, or an integer array of any shape, each in range(n).
        n: size, 1 <= n < 2**62.
        key: any integer; its low 64 bits count.

    Returns:
        an int for an int, else int64 of the same shape.

    Raises:
        ValueError: n or an index is out of range.
    """
    if not 1 <= n < 2**62:
        raise ValueError(f"n is {n}; a permutation needs 1 <= n < 2**62")
    given = np.atleast_1d(np.asarray(index))
    if given.size and (given.min() < 0 or given.max() >= n):
        raise ValueError(f"index reaches from {given.min()} to {given.max()}; it must stay in range({n})")
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    keys = [mix64(key + number * _GOLDEN) for number in range(_ROUNDS)]
    values = _feistel(given.astype(np.uint64).ravel(), rows, columns, keys)
    outside = np.flatnonzero(values >= n)
    while outside.size:
        values[outside] = _feistel(values[outside], rows, columns, keys)
        outside = outside[values[outside] >= n]
    out = values.astype(np.int64).reshape(given.shape)
    return out if isinstance(index, np.ndarray) else int(out[0])
