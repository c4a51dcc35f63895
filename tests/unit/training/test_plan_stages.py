"""Counts against models that are really built, and the pipeline's cut against every possible one."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import LanguageModel, MemoryConfig, ModelConfig
from model.cost import count_parameters, flops_per_token, layer_parameters, stage_costs
from model.parallel_context import ParallelContext
from model.stages import flat_layers
from tests.reference.small import DELTA, DEPTH, KINDS, LM2, RMT, tiny
from training.errors import ConfigError
from training.planning import cut_stages

SOME = LM2.model_copy(update={"layers": (1,)})


@pytest.mark.parametrize("memory", [*KINDS.values(), SOME], ids=[*KINDS, "one block"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("memory_on", [True, False])
def test_parameters_are_those_of_the_built_model(memory: MemoryConfig, tied: bool, memory_on: bool) -> None:
    config = tiny(memory, tie_embeddings=tied, num_layers=3)
    with torch.device("meta"):
        net = LanguageModel(config, memory_on=memory_on)
        layers = [layer.type(*layer.arguments) for layer in flat_layers(config, ParallelContext(), memory_on)]
    counted = count_parameters(config, memory_on)
    assert counted.total == sum(p.numel() for p in net.parameters())
    assert counted.memory == sum(p.numel() for _, p in net.memory_parameters())
    split = sum(p.numel() for p in net.parameters() if getattr(p, "tensor_model_parallel", False))
    assert counted.split == split
    built = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    assert [p.total for p in layer_parameters(config, memory_on)][:-1] == built[:-1]
    assert layer_parameters(config, memory_on)[-1].total == (0 if tied else built[-1])


@pytest.mark.parametrize("memory", [LM2, DELTA, DEPTH], ids=["lm2", "delta", "lm2-depth"])
def test_flops_are_six_for_each_weight_and_more_for_products(memory: MemoryConfig) -> None:
    config = tiny(memory)
    matrices = count_parameters(config).total - config.vocab_size * config.hidden_size  # without the embedding
    assert 6 * 0.95 * matrices < flops_per_token(config, True) < 6 * 1.6 * matrices
    assert flops_per_token(config, False) == flops_per_token(tiny(), True)


def test_rmt_computes_its_vectors_too() -> None:
    off, on = (stage_costs(tiny(RMT), memory_on)[1] for memory_on in (False, True))
    assert on / off == pytest.approx(1 + 3 * 3 / 4)  # 3 x 3 vectors around segments of 4 tokens


def worst(costs: list[float], cut: list[int]) -> float:
    return max(sum(costs[begin:end]) for begin, end in pairwise(cut))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=7), st.integers(0, 40), st.integers(0, 40), st.integers(1, 7))
def test_the_cut_is_the_best_of_all(decoders: list[int], embedding: int, head: int, stages: int) -> None:
    costs = [float(c) for c in (embedding, *decoders, 0, head)]
    if stages > len(decoders):
        with pytest.raises(ConfigError, match=f"parallel.pipeline: {stages} stages"):
            cut_stages(costs, stages)
        return
    cut = cut_stages(costs, stages)
    assert (cut[0], cut[-1], len(cut)) == (0, len(costs), stages + 1)
    inner = range(2, len(decoders) + 1)
    assert all(end in inner for end in cut[1:-1])
    assert all(begin < end for begin, end in pairwise(cut))
    every = ([0, *middle, len(costs)] for middle in combinations(inner, stages - 1))
    assert worst(costs, cut) == min(worst(costs, other) for other in every)


def test_a_heavy_head_gets_fewer_decoder_layers() -> None:
    config = ModelConfig(
        vocab_size=128256,
        hidden_size=2048,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        ffn_size=8192,
        segment_length=2048,
    )
    cut = cut_stages(stage_costs(config, False), 4)
    assert cut == [0, 6, 11, 16, 19]
