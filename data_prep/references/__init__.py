"""References for explicit memory: cut from documents, stored, retrieved, and looked up by training."""

from data_prep.references.neighbours import CHUNK, NeighbourTable, write_table
from data_prep.references.store import ReferenceStore

__all__ = ["CHUNK", "NeighbourTable", "ReferenceStore", "write_table"]
