"""The memory kinds: one file a kind behind the interface of `interface.py`."""

from model.config import ModelConfig
from model.layout import Layout
from model.memory.delta import DeltaMemory
from model.memory.interface import Memory, RecurrentMemory, memories, recording, wiped
from model.memory.lm2_depth import LM2DepthMemory
from model.memory.lm2_time import LM2TimeMemory
from model.memory.rmt import RMTMemory

__all__ = [
    "LM2DepthMemory",
    "Memory",
    "RMTMemory",
    "RecurrentMemory",
    "build_memory",
    "memories",
    "recording",
    "wiped",
]


def build_memory(config: ModelConfig, layout: Layout, index: int) -> Memory:
    """The memory module of one decoder layer.  A new kind is a file, a line here and a literal in MemoryConfig."""
    match config.memory.kind, config.memory.flow:
        case "lm2", "time" | None:
            return LM2TimeMemory(config, layout)
        case "lm2", "depth":
            return LM2DepthMemory(config, layout.tensor)
        case "delta", None:
            return DeltaMemory(config, layout)
        case "rmt", None:
            return RMTMemory(config, layout.tensor, holds_tokens=index == min(config.memory.hosts(config.num_layers)))
    raise AssertionError(f"no memory of kind {config.memory.kind}")
