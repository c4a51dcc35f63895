"""The same numbers with ZeRO stages, offload, sequence and segment parallelism (fp32)."""

import pytest

from tests.distributed.parity_case import MEMORIES, STEPS, assert_same, one_rank, one_rank_with
from tests.distributed.spawn import run_ranks
from tests.distributed.training_case import micro_batches_of, tiny_config, train


@pytest.mark.parametrize("tensor, data", [(1, 2), (2, 1)])
def test_zero_2_equals_one_rank(tensor: int, data: int) -> None:
    config = tiny_config(training__zero_stage=2, parallel={"tensor": tensor}, **micro_batches_of(data))
    assert_same(run_ranks(train, tensor * data, config, 1, STEPS)[0], one_rank(1, False))


@pytest.mark.parametrize("tensor, data", [(1, 1), (1, 2), (2, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_zero_3_equals_one_rank(tensor: int, data: int, tied: bool) -> None:
    layers = 2  # ZeRO 3 treats every layer alike
    changes = {"training__zero_stage": 3, "model__tie_embeddings": tied, "model__num_layers": layers}
    config = tiny_config(**changes, **micro_batches_of(data), parallel={"tensor": tensor})
    for found in run_ranks(train, tensor * data, config, 1, STEPS):
        assert_same(found, one_rank(1, tied, layers))


@pytest.mark.parametrize("stage, offload", [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "all")])
def test_offload_changes_nothing(stage: int, offload: str) -> None:
    config = tiny_config(training__zero_stage=stage, training__offload=offload, **micro_batches_of(2))
    for found in run_ranks(train, 2, config, 1, STEPS):
        assert_same(found, one_rank(1, False))


@pytest.mark.parametrize("memory", ["lm2", "delta"])
@pytest.mark.parametrize("tensor, pipeline", [(2, 1), (2, 2)])
def test_sequence_parallelism_equals_one_rank(memory: str, tensor: int, pipeline: int) -> None:
    changes = MEMORIES.get(memory, {})
    config = tiny_config(**changes, parallel={"tensor": tensor, "pipeline": pipeline, "sequence": True})
    expected = one_rank_with(memory) if changes else one_rank(1, False)
    for found in run_ranks(train, tensor * pipeline, config, 1, STEPS):
        assert_same(found, expected)


@pytest.mark.parametrize("memory", ["lm2", "delta"])
@pytest.mark.parametrize(
    "segment, tensor, pipeline, data", [(2, 1, 1, 1), (4, 1, 1, 1), (2, 2, 1, 1), (2, 1, 1, 2), (2, 1, 2, 1)]
)
def test_segment_parallelism_equals_one_rank(memory: str, segment: int, tensor: int, pipeline: int, data: int) -> None:
    changes = MEMORIES.get(memory, {})
    parallel = {"tensor": tensor, "pipeline": pipeline, "segment": segment}
    config = tiny_config(**changes, parallel=parallel, **micro_batches_of(data))
    expected = one_rank_with(memory) if changes else one_rank(1, False)
    for found in run_ranks(train, segment * tensor * pipeline * data, config, 1, STEPS):
        assert_same(found, expected)
