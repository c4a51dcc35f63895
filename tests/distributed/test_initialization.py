"""Initial weights: a rank draws its own shard, bit for bit that of the weight one rank would draw."""

import pytest
import torch
from torch import Tensor

from model import LanguageModel, ModelConfig, build_model
from tests.distributed.spawn import run_ranks
from tests.distributed.training_case import tiny_config
from tests.reference.small import KINDS, tiny
from training.config import RunConfig
from training.distributed.ranks import RankInfo
from training.distributed.topology import initialize

SEED = 5
# Shards that begin and end on a multiple of 16 numbers, and shards that do not
SHAPES = {
    "multiples of 16": {"hidden_size": 64, "ffn_size": 96, "vocab_size": 48},
    "odd widths": {"hidden_size": 40, "ffn_size": 36, "vocab_size": 44},
}


def own_shards(config: RunConfig, models: list[ModelConfig]) -> list[dict[str, tuple[int | None, Tensor]]]:
    """Of each model: the dimension that ranks share and this rank's values, by parameter."""
    parallel, found = initialize(config, RankInfo.discover()).parallel, []
    for model in models:
        net = LanguageModel(model, parallel)
        net.initialize(SEED)
        found.append({name: (getattr(p, "partition_dim", None), p.detach()) for name, p in net.named_parameters()})
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_shards_are_those_of_one_rank(shape: str) -> None:
    models = [tiny(kind, **SHAPES[shape]) for kind in KINDS.values()]
    ranks = run_ranks(own_shards, 2, tiny_config(parallel={"tensor": 2}), models)
    for index, model in enumerate(models):
        sharded = 0
        for name, parameter in build_model(model, seed=SEED).named_parameters():
            dim, first = ranks[0][index][name]
            second = ranks[1][index][name][1]
            sharded += dim is not None
            whole = first if dim is None else torch.cat((first, second), dim)
            assert torch.equal(whole, parameter.detach()), f"{name} of {model.memory.kind}"
            assert dim is not None or torch.equal(first, second), f"{name} of {model.memory.kind}"
        assert sharded >= 9  # the embeddings, and four matrices of both layers
