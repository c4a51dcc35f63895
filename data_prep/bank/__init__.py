"""The bank: written memories (keys and values of references) on disk, read by id."""

from .bank import Bank
from .layout import MemoryShape
from .quantise import Quantiser
from .writer import BankWriter, delete_memories, merge_bank

__all__ = ["Bank", "BankWriter", "MemoryShape", "Quantiser", "delete_memories", "merge_bank"]
