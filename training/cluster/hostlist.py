"""Expands Slurm's host lists, such as `rack[1-2]n[01-04,7],login`, into names."""

import re
from collections.abc import Iterator, Sequence
from itertools import product

MOST = 65536  # names of one list; the bound is Slurm's
_PART = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")
_NUMBERS = re.compile(r"(\d+)(?:-(\d+))?")


def split(text: str) -> list[str]:
    """Split a list at the commas outside of brackets: `n[1,3], m` gives `n[1,3]` and `m`.

    Raises `ValueError` for brackets that do not match and for an empty member.
    """
    members, depth, start = [], 0, 0
    for index, sign in enumerate([*text, ","]):
        depth += (sign == "[") - (sign == "]")
        if depth not in (0, 1):
            break
        if sign == "," and depth == 0:
            members.append(text[start:index].strip())
            start = index + 1
    if depth:
        raise ValueError("has brackets that do not match; write it like node[1-3,7]")
    if not all(members):
        raise ValueError("has an empty name between commas; write it like node[1-3,7],login1")
    return members


def expand(texts: Sequence[str]) -> list[str]:
    """Return the names in host lists, each once, in their order; numbers keep their leading zeros.

    Raises `ValueError` for a list that Slurm would refuse.
    """
    names: dict[str, None] = {}
    for text in texts:
        for member in split(text):
            parts = [list(_part(*match)) for match in _PART.findall(member)]
            size = len(names)
            for part in parts:
                size = max(size, 1) * len(part)
            if size > MOST:
                raise ValueError(f"stands for more than {MOST} names; write a shorter list")
            names |= dict.fromkeys("".join(name) for name in product(*parts))
    return list(names)


def _part(inside: str, outside: str) -> Iterator[str]:
    """Yield the numbers for which the content of a pair of brackets stands, or the text outside of brackets."""
    if outside:
        if re.search(r"\s", outside):
            raise ValueError("has a space in a name; separate names by commas")
        yield outside
        return
    for numbers in inside.split(","):
        match = _NUMBERS.fullmatch(numbers.strip())
        if match is None:
            raise ValueError(f"has [{inside}], but brackets hold numbers and ranges; write it like node[1-3,7]")
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first):
            raise ValueError(f"has the range {numbers.strip()}, whose end is before its start; write {last}-{first}")
        if int(last) - int(first) >= MOST:
            raise ValueError(f"stands for more than {MOST} names; write a shorter list")
        for number in range(int(first), int(last) + 1):
            yield f"{number:0{len(first)}d}"
