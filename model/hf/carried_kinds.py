"""`model/memory/entry_points.py` of an exported folder, which carries the kind that it needs and asks for no other.

For a kind of another package `bundle.py` adds the lines that enter its class here.
"""

from model.memory.spec import MemoryConfig

KINDS: dict[str, type[MemoryConfig]] = {}


def kinds() -> list[str]:
    """Names of the kinds that came with the folder beside memtrain's own."""
    return list(KINDS)


def load(kind: str) -> type[MemoryConfig]:
    """The class of one of `kinds`."""
    return KINDS[kind]
