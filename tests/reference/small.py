"""Shapes small enough for Python loops, and memories that matter from the first token."""

import os
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model import LanguageModel, MemoryConfig, ModelConfig
from model.memory.registry import choices

SEGMENT, VOCAB = 4, 23
SIZES: dict[str, dict[str, object]] = {
    "lm2": {"flow": "time", "slots": 3, "heads": 2},
    "lm2-depth": {"heads": 2},
    "delta": {"heads": 2},
    "rmt": {"slots": 3, "heads": 2},
}
# every kind that is registered, those of installed packages too
KINDS = {name: MemoryConfig(**kind.selects, **SIZES.get(name, {})) for name, kind in choices().items()}
NONE, LM2, DELTA, DEPTH, RMT = (KINDS[name] for name in ("none", "lm2", "delta", "lm2-depth", "rmt"))
# whoever writes a kind tests it alone: MEMTRAIN_TEST_KINDS=mine,other
TESTED = [kind for kind in os.environ.get("MEMTRAIN_TEST_KINDS", "").split(",") if kind] or list(KINDS)
SPANS = (1, 2, 3)
PAIRS = [(kind, span) for kind in TESTED for span in SPANS if span == 1 or not KINDS[kind].sequential]

MOMENTS = {  # of the parameters for which 0 and 0.3 would be out of the ordinary
    "scale": (0.8, 0.2),
    "open": (0.8, 0.1),
    "tokens": (0.0, 1.0),
}


def tiny(memory: MemoryConfig | dict[str, Any] = NONE, **changes: Any) -> ModelConfig:
    """Two layers with weights large enough that attention is far from uniform and logits are of order one."""
    shape: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_size": 24,
        "segment_length": SEGMENT,
        "init_std": 0.3,
    }
    return ModelConfig(**shape | {"memory": memory} | changes)


def awake(net: LanguageModel, seed: int = 0) -> LanguageModel:
    """`net` with every memory parameter drawn anew, none zero: as after training, the memory is read and written."""
    for name, parameter in net.memory_parameters():
        mean, std = MOMENTS.get(name.rsplit(".", 1)[1], (0.0, 0.3))
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
        nn.init.normal_(parameter, mean, std, generator=generator)
    return net


def random_ids(seed: int, batch: int, length: int) -> Tensor:
    """int64 [batch, length]"""
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """In a module that imports it.  Threads that wait for each other on a busy machine make tiny products slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
