"""References for explicit memory: cut from documents, stored, retrieved, and looked up by training."""

from .neighbours import CHUNK, NeighbourTable, write_table
from .store import ReferenceStore

__all__ = ["CHUNK", "NeighbourTable", "ReferenceStore", "write_table"]
