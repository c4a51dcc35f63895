"""Names of lengths, and the tokens a context may have at each."""

import re

from data_prep.errors import DataError

RESERVE = 300  # tokens the benchmark keeps of every length for question and prompt
_NAME = re.compile(r"(\d+)([kKmM]?)", re.ASCII)


def tokens_of(length: str) -> int:
    """ "4k" -> 4,000, "1M" -> 1,000,000, "512" -> 512, as BABILong counts; raises `DataError` for anything else."""
    match = _NAME.fullmatch(length.strip())
    if match is None:
        raise DataError(f"--lengths: {length!r} is no length; write 0k, 4k, 128k, 1M, or a number of tokens")
    if len(match[1]) > 9:
        raise DataError(f"--lengths: {length!r} is more than 999 million tokens; write 0k, 4k, 128k, 1M")
    return int(match[1]) * {"": 1, "k": 1000, "m": 1_000_000}[match[2].lower()]


def canonical(length: str) -> str:
    """One spelling a length: 0k, 512, 4k, 128k, 1M."""
    tokens = tokens_of(length)
    for size, letter in ((1_000_000, "M"), (1000, "k")):
        if tokens % size == 0 and (tokens or letter == "k"):
            return f"{tokens // size}{letter}"
    return str(tokens)


def context_tokens(length: int) -> int:
    """Tokens of facts and background together; 0: facts alone, as many as they are."""
    return length - min(RESERVE, 3 * length // 10)
