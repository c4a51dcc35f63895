"""Names of lengths, and the tokens of a context at each."""

import re

from data_prep.errors import DataError

RESERVE = 300  # tokens of every length that the benchmark reserves for question and prompt
_NAME = re.compile(r"(\d+)([kKmM]?)", re.ASCII)


def tokens_of(length: str) -> int:
    """Return the tokens of a length as in BABILong: "4k" is 4,000, "1M" 1,000,000, "512" 512. Raises `DataError`."""
    match = _NAME.fullmatch(length.strip())
    if match is None:
        raise DataError(f"--lengths: {length!r} is no length; write 0k, 4k, 128k, 1M, or a number of tokens")
    if len(match[1]) > 9:
        raise DataError(f"--lengths: {length!r} is more than 999 million tokens; write 0k, 4k, 128k, 1M")
    return int(match[1]) * {"": 1, "k": 1000, "m": 1_000_000}[match[2].lower()]


def canonical(length: str) -> str:
    """Return the canonical spelling of a length: 0k, 512, 4k, 128k, 1M. Raises `DataError`."""
    tokens = tokens_of(length)
    for size, letter in ((1_000_000, "M"), (1000, "k")):
        if tokens % size == 0 and (tokens or letter == "k"):
            return f"{tokens // size}{letter}"
    return str(tokens)


def context_tokens(length: int) -> int:
    """Return the tokens of facts and background together; 0: facts alone, of any length."""
    return length - min(RESERVE, 3 * length // 10)
