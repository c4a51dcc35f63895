"""The bank: explicit memories (keys and values of references) on disk, which are read by id."""

from data_prep.bank.bank import Bank
from data_prep.bank.layout import MemoryShape
from data_prep.bank.quantise import Quantiser
from data_prep.bank.writer import BankWriter, delete_memories, merge_bank

__all__ = ["Bank", "BankWriter", "MemoryShape", "Quantiser", "delete_memories", "merge_bank"]
