"""The same numbers on any topology: loss, gradient norm, every weight and moment (fp32)."""

import pytest

from tests.distributed.parity_case import MEMORIES, STEPS, assert_same, one_rank, one_rank_with
from tests.distributed.spawn import run_ranks
from tests.distributed.training_case import micro_batches_of, tiny_config, train, train_compiled
from training.errors import ConfigError

TOPOLOGIES = [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (1, 2, 2)]  # tensor, pipeline, data


@pytest.mark.parametrize("tensor, pipeline, data", TOPOLOGIES)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_memory_phase_equals_one_rank(tensor: int, pipeline: int, data: int, tied: bool) -> None:
    parallel = {"tensor": tensor, "pipeline": pipeline}
    config = tiny_config(model__tie_embeddings=tied, parallel=parallel, **micro_batches_of(data))
    for found in run_ranks(train, tensor * pipeline * data, config, 1, STEPS):
        assert_same(found, one_rank(1, tied))


@pytest.mark.parametrize(
    "memory, tensor, pipeline",
    [
        *(("delta", *topology) for topology in [(2, 1), (1, 2), (2, 2)]),
        ("lm2-depth", 2, 1),
        *(("lm2-depth, one segment", *topology) for topology in [(2, 1), (1, 2), (2, 2)]),
        ("rmt", 2, 1),
    ],
)
def test_every_kind_equals_one_rank(memory: str, tensor: int, pipeline: int) -> None:
    config = tiny_config(**MEMORIES[memory], parallel={"tensor": tensor, "pipeline": pipeline})
    for found in run_ranks(train, tensor * pipeline, config, 1, STEPS):
        assert_same(found, one_rank_with(memory))


@pytest.mark.parametrize("memory, words", [("lm2-depth", "lm2 flow: depth"), ("rmt", "rmt")])
def test_segments_in_turn_are_refused_in_a_pipeline(memory: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"parallel.pipeline: 2 with memory {words}.*the last stage computes"):
        tiny_config(**MEMORIES[memory], parallel={"pipeline": 2})


@pytest.mark.parametrize("tensor, pipeline, data", [(2, 1, 1), (2, 2, 1)])
def test_warmup_phase_equals_one_rank(tensor: int, pipeline: int, data: int) -> None:
    config = tiny_config(model__tie_embeddings=True, parallel={"tensor": tensor, "pipeline": pipeline})
    for found in run_ranks(train, tensor * pipeline * data, config, 0, STEPS):
        assert_same(found, one_rank(0, True))


@pytest.mark.parametrize("how", ["selective", "full"])
@pytest.mark.parametrize("tensor, pipeline", [(1, 1), (1, 2)])
def test_activation_checkpointing_changes_nothing(how: str, tensor: int, pipeline: int) -> None:
    config = tiny_config(training__activation_checkpointing=how, parallel={"tensor": tensor, "pipeline": pipeline})
    assert_same(run_ranks(train, tensor * pipeline, config, 1, STEPS)[0], one_rank(1, False))


def test_the_memory_is_used_after_training() -> None:
    found = one_rank(1, False)
    assert abs(found["ablated"] - found["valid"]) > 1e-3  # a hundred times what topologies may differ by


def test_a_phase_without_memory_holds_nothing_of_it() -> None:
    off, on = one_rank(0, False)["counts"], one_rank(1, False)["counts"]
    assert off["memory_parameters"] == off["memory_optimizer_state"] == 0
    assert on["memory_optimizer_state"] == 2 * on["memory_parameters"] > 0
    assert off["parameters"] == on["parameters"] and off["optimizer_state"] == on["optimizer_state"]
    assert not [name for name in one_rank(0, False)["weights"] if ".memory." in name]


@pytest.mark.parametrize(
    "memory, pipeline, backend",
    [
        ("lm2", 2, "aot_eager"),
        pytest.param("lm2", 2, "inductor", marks=pytest.mark.slow),
        pytest.param("delta", 1, "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_layers_change_nothing(memory: str, pipeline: int, backend: str) -> None:
    model = {} if memory == "lm2" else MEMORIES[memory]
    config = tiny_config(**model, parallel={"pipeline": pipeline}, training__compile="on")
    for found in run_ranks(train_compiled, pipeline, config, 1, STEPS, backend):
        assert_same(found, one_rank(1, False) if memory == "lm2" else one_rank_with(memory))
