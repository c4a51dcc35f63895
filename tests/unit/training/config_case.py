"""A small configuration to change, and the lines with which a wrong one is refused."""

import copy
from pathlib import Path
from typing import Any

import pytest

from training.config import load_config, parse_config
from training.errors import ConfigError

TINY: dict[str, Any] = {
    "run": {"name": "tiny", "output_dir": "runs"},
    "data": {"path": "data", "sequence_length": 64},
    "model": {
        "vocab_size": 512,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_size": 64,
        "segment_length": 16,
        "memory": {"kind": "lm2", "flow": "time", "slots": 4, "heads": 2},
    },
    "phases": [
        {"name": "warmup", "memory": False, "tokens": 1024, "tokens_per_step": 256, "lr": {"peak": 1e-3}},
        {"name": "memory", "memory": True, "tokens": 1000, "tokens_per_step": 256, "lr": {"peak": 1e-3}},
    ],
    "training": {"micro_batch_size": 1},
}


def changed(**values: Any) -> dict[str, Any]:
    """`TINY` with values at paths written with `__` for the dot."""
    raw = copy.deepcopy(TINY)
    for key, value in values.items():
        *parents, last = [int(part) if part.isdigit() else part for part in key.split("__")]
        node: Any = raw
        for part in parents:
            node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
        node[last] = value
    return raw


def problems(raw: dict[str, Any]) -> list[str]:
    """The lines of the refusal."""
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    return str(caught.value).split("\n")


def refused(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides))
    return str(caught.value).split("\n")
