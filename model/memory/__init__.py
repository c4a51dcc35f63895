"""The memory kinds: one file a kind behind the interface of `interface.py`."""

from model.config import ModelConfig
from model.memory.delta import DeltaMemory
from model.memory.interface import RecurrentMemory, memories, wiped
from model.memory.lm2_time import LM2TimeMemory
from model.parallel import TensorParallel

__all__ = ["RecurrentMemory", "build_memory", "memories", "wiped"]


def build_memory(config: ModelConfig, tp: TensorParallel) -> RecurrentMemory:
    """The memory module of one decoder layer.  A new kind is a file, a line here and a literal in MemoryConfig."""
    match config.memory.kind, config.memory.flow:
        case "lm2", "time" | None:
            return LM2TimeMemory(config, tp)
        case "delta", None:
            return DeltaMemory(config, tp)
    raise AssertionError(f"no memory of kind {config.memory.kind}")
