"""The paper's arithmetic of explicit memory, and what references cost in training."""

from pathlib import Path

import pytest

from model import ModelConfig
from model.cost import count_parameters, flops_per_token, stage_costs
from model.explicit.cost import knowledge_costs, memory_bytes, sparsity
from training.config import load_config

pytestmark = pytest.mark.memory3
CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture(scope="module")
def paper() -> ModelConfig:
    return load_config(CONFIGS / "memory3_2.4b.yaml").model


def test_parameters_are_the_papers(paper):
    embeddings = 2 * paper.vocab_size * paper.hidden_size
    assert count_parameters(paper).total - embeddings == pytest.approx(2.43e9, rel=2e-3)
    assert count_parameters(paper, memory_on=True) == count_parameters(paper, memory_on=False)


def test_write_and_read_costs_and_crossover_are_the_papers(paper):
    costs = knowledge_costs(paper)
    assert costs.implicit_write == pytest.approx(2.24e12, rel=2e-3)
    assert costs.explicit_write == pytest.approx(0.308e12, rel=2e-3)
    assert costs.explicit_read == pytest.approx(1.44e8, rel=2e-3)
    assert costs.rag_read == pytest.approx(0.624e12, rel=2e-3)
    low, high = costs.crossover
    assert low == pytest.approx(0.494, rel=2e-3) and high == pytest.approx(13_400, rel=2e-3)
    for uses, best in ((0.4, "rag"), (0.6, "explicit"), (13_000, "explicit"), (14_000, "implicit")):
        found = costs.of(uses)
        assert min(found, key=lambda form: found[form]) == best


def test_storage_is_the_papers(paper):
    assert memory_bytes(paper) == 450_560
    assert sparsity(paper) == 160
    references, tebibyte = 1.12e8, 2**40
    assert references * memory_bytes(paper) / tebibyte == pytest.approx(45.9, rel=1e-3)
    assert references * memory_bytes(paper) * sparsity(paper) / 2**50 == pytest.approx(7.17, rel=2e-3)
    quantised = memory_bytes(paper) * 14 / 160  # OPQ20x80-Residual2x14-PQ8x10: 80 bf16 numbers in 14 bytes
    assert references * quantised / tebibyte == pytest.approx(4.02, rel=2e-3)


def test_a_step_with_references_costs_what_its_references_cost(paper):
    ratio = flops_per_token(paper, True) / flops_per_token(paper, False)
    assert 1.75 < ratio < 1.9  # two reference tokens a token, through 21.3 of 44 blocks, and no output head


def test_only_blocks_up_to_the_last_memory_layer_cost_more(paper):
    off, on = stage_costs(paper, False), stage_costs(paper, True)
    more = [b / a for a, b in zip(off[1:45], on[1:45], strict=True)]
    assert all(m > 2.5 for m in more[:21]) and 1.2 < more[21] < 1.6 and more[22:] == [1.0] * 22
    assert off[45:] == on[45:] and off[0] == on[0]
