"""Explicit memory gives the same numbers on any topology: loss, gradient norm, every weight and moment (fp32)."""

from functools import lru_cache
from typing import Any

import pytest
import torch

from model import LanguageModel, build_model
from model.explicit import References, write
from tests.distributed.parity_case import assert_same
from tests.distributed.spawn import run_ranks
from tests.distributed.training_case import MICRO_BATCHES, SAMPLES, tiny_config, train
from training.config import RunConfig
from training.distributed.topology import RankInfo, initialize
from training.errors import ConfigError

pytestmark = pytest.mark.memory3
STEPS, LENGTH = 3, 256
MEMORIES: dict[str, dict[str, Any]] = {"none": {"kind": "none"}, "lm2": {"kind": "lm2", "slots": 4, "heads": 2}}


def config_with(memory: str = "none", **changes: Any) -> RunConfig:
    """Four chunks a sample in two segments; two of the four blocks are memory layers."""
    return tiny_config(
        data={"path": "unused", "sequence_length": LENGTH, "references": "unused"},
        model__memory=MEMORIES[memory],
        model__segment_length=128,
        model__explicit={"bos": [1, 2], "reference_length": 12, "tokens": 3, "references": 3},
        phases=[
            {"name": n, "memory": on, "tokens": 8192, "tokens_per_step": SAMPLES * LENGTH, "lr": {"peak": 3e-3}}
            for n, on in (("warmup", False), ("memory", True))
        ],
        **changes,
    )


@lru_cache
def one_rank(memory: str) -> dict[str, Any]:
    return run_ranks(train, 1, config_with(memory), 1, STEPS)[0]


TOPOLOGIES = [  # memory, tensor, pipeline, data, training
    ("none", 2, 1, 1, {}),
    ("none", 1, 2, 1, {}),
    ("lm2", 2, 2, 1, {}),
    ("none", 1, 4, 1, {"activation_checkpointing": "full"}),  # a stage that begins above the memory layers
    ("lm2", 1, 1, 2, {"zero_stage": 2, "activation_checkpointing": "selective"}),
    ("none", 1, 1, 2, {"zero_stage": 3, "activation_checkpointing": "full"}),
]


@pytest.mark.parametrize("memory, tensor, pipeline, data, training", TOPOLOGIES)
def test_explicit_memory_equals_one_rank(memory, tensor, pipeline, data, training):
    training = {"micro_batch_size": SAMPLES // MICRO_BATCHES // data} | training
    config = config_with(memory, training=training, parallel={"tensor": tensor, "pipeline": pipeline})
    for found in run_ranks(train, tensor * pipeline * data, config, 1, STEPS):
        assert_same(found, one_rank(memory))


def through_a_bank(config: RunConfig) -> dict[str, float]:
    """Largest differences to one process of what is written and of logits that read it, on this rank."""
    parallel = initialize(config, RankInfo.discover()).parallel
    net, alone = LanguageModel(config.model, parallel), build_model(config.model)
    net.initialize(seed=0)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 64, (4, 12), generator=generator)
    lengths = torch.tensor([12, 2, 0, 7])
    ids = torch.randint(0, 64, (1, LENGTH), generator=generator)
    with torch.no_grad():
        written, expected = write(net, tokens, lengths), write(alone, tokens, lengths)
        references = References(lengths.unsqueeze(0), memories=expected.unsqueeze(0), window=3)
        logits = [n(ids, references=references).logits for n in (net, alone)]
    return {"written": float((written - expected).abs().max()), "logits": float((logits[0] - logits[1]).abs().max())}


@pytest.mark.parametrize("heads", ["all", [1]], ids=["all heads", "a head of the second rank"])
def test_writing_and_reading_a_bank_equal_one_rank(heads):
    config = config_with(parallel={"tensor": 2})
    explicit = config.model.explicit.model_copy(update={"kv_heads": heads if heads == "all" else tuple(heads)})
    config = config.model_copy(update={"model": config.model.model_copy(update={"explicit": explicit})})
    for found in run_ranks(through_a_bank, 2, config):
        assert max(found.values()) < 1e-5


def test_references_are_read():
    found = one_rank("none")
    assert abs(found["ablated"] - found["valid"]) > 2e-4  # twenty times what topologies may differ by


@pytest.mark.parametrize(
    "parallel, words",
    [({"segment": 2}, "rank; set parallel.segment=1"), ({"tensor": 2, "sequence": True}, "split")],
)
def test_what_would_split_references_is_refused(parallel, words):
    with pytest.raises(ConfigError, match=words):
        config_with(parallel=parallel)
