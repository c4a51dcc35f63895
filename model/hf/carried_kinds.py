"""Replaces `model/memory/entry_points.py` in an exported folder, which contains the memory kind that it needs.

For a kind of another package, `bundle.py` appends lines that add its class to `KINDS`.
"""

from model.memory.spec import MemoryConfig

KINDS: dict[str, type[MemoryConfig]] = {}


def kinds() -> list[str]:
    """Return the names of the folder's kinds that are not memtrain's own."""
    return list(KINDS)


def load(kind: str) -> type[MemoryConfig]:
    """Return the class of one of `kinds`."""
    return KINDS[kind]
