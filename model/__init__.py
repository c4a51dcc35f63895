"""Decoder-only language models whose blocks host a memory."""

from model.config import MemoryConfig, ModelConfig, RopeScaling
from model.errors import ModelError
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
