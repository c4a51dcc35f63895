"""Decoder-only language models whose blocks host a memory.

Names that need torch are imported on first use, so that a configuration is read, checked and planned without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from model.config import MemoryConfig, ModelConfig, RopeScaling
from model.errors import ModelError

if TYPE_CHECKING:
    from model.network import LanguageModel, ModelOutput, build_model
    from model.state import StreamState

__all__ = [
    "LanguageModel",
    "MemoryConfig",
    "ModelConfig",
    "ModelError",
    "ModelOutput",
    "RopeScaling",
    "StreamState",
    "build_model",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'model' has no attribute '{name}'")
    return getattr(import_module("model.state" if name == "StreamState" else "model.network"), name)
