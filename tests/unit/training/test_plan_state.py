"""Weights, gradients and optimizer state of a plan against what the engine holds while it makes a step."""

import gc
from typing import Any

import pytest
import torch

from model.memory.planning import FP32
from tests.distributed.spawn import run_ranks
from tests.distributed.training_case import start, step_batch, tiny_config
from training.planning.memory import ITEM, ranks_of, stages_of, state_bytes

WIDE = {"model__hidden_size": 128, "model__ffn_size": 512}


def storages(engine: Any) -> dict[int, int]:
    """Bytes of every tensor that is still needed, by its storage."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
    for parameter in engine.parameters.values() if engine else ():
        tensors += [g for g in (parameter.grad, getattr(parameter, "grad_accum", None)) if g is not None]
    found = [x.untyped_storage() for x in tensors if x.device.type == "cpu"]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def held(zero_stage: int, precision: str) -> tuple[int, int]:
    """Most bytes that two steps hold beside what was there before, and the numbers in the optimizer's moments."""
    config = tiny_config(training__zero_stage=zero_stage, training__precision=precision, **WIDE)
    before = storages(None)
    engine, topology = start(config, 1)
    seen: list[int] = []

    def watched(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            now = {key: size for key, size in storages(engine).items() if key not in before}
            seen.append(sum(now.values()))
            return function(*arguments, **named)

        return call

    engine.ds.step = watched(engine.ds.step)  # after each backward
    inner = engine.ds.optimizer.optimizer
    inner.step = watched(inner.step)
    for step in range(2):
        engine.train_step(step_batch(step, topology, config.training.micro_batch_size), 1e-3)
    counts = engine.counts()
    return max(seen), counts["optimizer_state"] + counts["memory_optimizer_state"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_state_is_what_the_engine_holds(world: int, zero_stage: int, precision: str) -> None:
    config = tiny_config(training__zero_stage=zero_stage, training__precision=precision, **WIDE)
    ranks = ranks_of(config, world)
    (stage,) = stages_of(config.model, True, False, 1, 1)
    plan = state_bytes(config, stage.parameters, stage.trained, ranks.shards)
    most, moments = run_ranks(held, world, zero_stage, precision)[0]
    # of the buckets only these may stay allocated between a backward and its step; when others' work keeps the
    # machine busy, that of stage 1 is now and then given back before
    bucket = zero_stage == 3 or (zero_stage == 1 and precision == "fp32" and world > 1)
    kept = ITEM[precision] * stage.parameters if bucket else 0
    planned = plan.weights + plan.gradients + plan.optimizer
    given_back = kept if zero_stage == 1 else 0
    if most > 1.1 * (planned + kept):  # sometimes a copy of the bf16 weights is still held: count again
        most = min(most, run_ranks(held, world, zero_stage, precision)[0][0])
    assert 0.9 * (planned + kept - given_back) <= most <= 1.1 * (planned + kept)
    assert plan.optimizer == pytest.approx(1.5 * FP32 * moments, rel=0.01)  # the master copy beside the two moments


def test_stage_3_shards_everything_and_offloading_moves_it_away() -> None:
    config = tiny_config(training__precision="bf16")
    third = config.model_copy(update={"training": config.training.model_copy(update={"zero_stage": 3})})
    plan = state_bytes(third, 1000, 1000, 8)
    assert (plan.weights, plan.gradients, plan.optimizer) == (250, 1000, 1500)
    away = third.model_copy(update={"training": third.training.model_copy(update={"offload": "all"})})
    offloaded = state_bytes(away, 1000, 1000, 8)
    assert (offloaded.weights, offloaded.optimizer) == (0, 0)
    assert offloaded.host == 250 + 500 + 1500


def test_what_is_not_trained_is_held_for_the_phases_after_it() -> None:
    config = tiny_config(training__precision="bf16")
    alone, everything = state_bytes(config, 1000, 400, 8), state_bytes(config, 1000, 1000, 8)
    assert alone.optimizer == everything.optimizer == 1500
    assert alone.gradients < everything.gradients
