"""What the tests of parity share: the numbers of one rank, and what they are compared with."""

from functools import lru_cache
from typing import Any

import pytest

from tests.distributed.spawn import run_ranks
from tests.distributed.training_case import tiny_config, train

STEPS = 2  # losses and moments after an update, weights after two; `make parity` makes ten
MEMORIES: dict[str, dict[str, Any]] = {
    "delta": {"model__memory": {"kind": "delta", "heads": 2}},
    "lm2-depth": {"model__memory": {"kind": "lm2", "flow": "depth", "heads": 2}},
    # the pipeline takes one segment a sample of the published LM2
    "lm2-depth, one segment": {
        "model__memory": {"kind": "lm2", "flow": "depth", "heads": 2},
        "model__segment_length": 32,
    },
    "rmt": {"model__memory": {"kind": "rmt", "slots": 2, "rmt_open": 1.0}},
}


@lru_cache
def one_rank(phase: int, tied: bool, layers: int = 4) -> dict[str, Any]:
    config = tiny_config(model__tie_embeddings=tied, model__num_layers=layers)
    return run_ranks(train, 1, config, phase, STEPS)[0]


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["loss"] == pytest.approx(expected["loss"], rel=2e-6)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    assert found["valid"] == pytest.approx(expected["valid"], rel=2e-6)
    assert found["ablated"] == pytest.approx(expected["ablated"], rel=2e-6)
    assert found["gates"] == pytest.approx(expected["gates"], rel=1e-3)
    assert found["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        difference = (found["weights"][name] - value).abs().max().item()
        # AdamW divides by the square root of tiny second moments: a weight may move by a share of the learning rate
        assert difference < (3e-4 if "/" not in name else 1e-4), f"{name} differs by {difference}"


@lru_cache
def one_rank_with(memory: str) -> dict[str, Any]:
    return run_ranks(train, 1, tiny_config(**MEMORIES[memory]), 1, STEPS)[0]
