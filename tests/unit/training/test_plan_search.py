"""What the planner proposes is legal, fits and is the fastest; what it refuses, it refuses with a way out."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.training.config_case import TINY, changed
from training.config import RunConfig, dump_yaml, load_config, parse_config
from training.distributed.topology import RankInfo, check_world
from training.errors import ConfigError
from training.planning.devices import DEVICES, GIB, parse_devices
from training.planning.memory import memory_of, ranks_of
from training.planning.plan import make_plan, topology_problems
from training.planning.search import best_plan, candidates, search
from training.planning.timing import bubble_fraction, step_time

CONFIGS = Path(__file__).parents[3] / "configs"
H200, A100 = DEVICES["h200"], DEVICES["a100"]


def copy_of(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    update = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    return config.model_copy(update=update)


@pytest.fixture(scope="module")
def large() -> RunConfig:
    return load_config(CONFIGS / "lm2_1.7b.yaml")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 48), st.sampled_from([1, 2, 4, 6, 8]), st.sampled_from([2, 4, 12]))
def test_every_candidate_is_a_legal_run_of_all_devices(world: int, layers: int, samples: int) -> None:
    phases = [dict(phase, tokens_per_step=64 * samples, tokens=64 * samples * 3) for phase in TINY["phases"]]
    config = parse_config(changed(model__num_layers=layers, phases=phases))
    for candidate in candidates(config, world, H200, offload=False):
        ranks = ranks_of(candidate, world)
        assert ranks.world == world
        assert ranks.tensor <= H200.node_size
        parse_config(candidate.model_dump(mode="json"))  # validates
        if ranks.segment == 1:
            check_world(candidate, RankInfo(0, world, 0))  # what the run itself checks


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(sorted(DEVICES)), st.sampled_from([1, 4, 6, 8, 32, 256]))
def test_what_is_proposed_fits_and_nothing_that_fits_is_faster(name: str, world: int) -> None:
    device, config = DEVICES[name], load_config(CONFIGS / "lm2_1.7b.yaml")
    found = search(config, world, device)
    assert all(plan.memory.total <= device.usable for plan in found.plans)
    assert [plan.seconds for plan in found.plans] == pytest.approx(sorted(p.seconds for p in found.plans), rel=0.01)
    if not topology_problems(config, world, device) and (own := make_plan(config, world, device)).fits:
        assert found.best.seconds <= own.seconds * 1.01


def test_overrides_make_the_planned_configuration(large: RunConfig, tmp_path: Path) -> None:
    best = best_plan(large, 64, H200).best
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(large), encoding="utf-8")
    assert load_config(path, best.overrides()) == best.config


def test_thousands_of_devices_are_planned_in_a_moment(large: RunConfig) -> None:
    found = best_plan(large, 4096, H200)
    assert found.best.ranks.world == 4096
    assert found.best.days < best_plan(large, 64, H200).best.days


# -- what the numbers have to obey ------------------------------------------------------------------------------------


def test_memory_falls_with_what_shares_it(large: RunConfig) -> None:
    def gib(world: int, **sections: dict[str, Any]) -> float:
        config = copy_of(large, **sections)
        return memory_of(config, config.phases[1], ranks_of(config, world), H200).total / GIB

    stages = [gib(64, training={"zero_stage": z}) for z in (1, 2, 3)]
    assert stages[0] > stages[1]
    assert gib(8, parallel={"tensor": 8}) < gib(8, parallel={"tensor": 4}) < gib(8)
    assert gib(8, parallel={"tensor": 8, "sequence": True}) < gib(8, parallel={"tensor": 8})
    assert gib(8, parallel={"pipeline": 4}) < gib(8)
    assert gib(8, parallel={"segment": 4}) < gib(8)
    ways = [gib(8, training={"activation_checkpointing": c}) for c in ("none", "selective", "full")]
    assert ways == sorted(ways, reverse=True)
    assert gib(8, training={"offload": "optimizer"}) < gib(8)
    # activations grow with the micro-batch, the rest does not: the loss is computed in blocks of rows
    whole = {"activation_checkpointing": "none"}
    assert gib(8, training=whole | {"micro_batch_size": 4}) > 2 * gib(8, training=whole | {"micro_batch_size": 1})


def test_the_bubble_is_the_textbooks(large: RunConfig) -> None:
    config = copy_of(large, parallel={"pipeline": 4}, training={"zero_stage": 1, "micro_batch_size": 1})
    step = step_time(config, config.phases[0], ranks_of(config, 8), H200)
    assert step.micro_batches == 64
    busy = step.compute + step.tensor + step.segment
    assert step.bubble / (busy + step.bubble) == pytest.approx(bubble_fraction(64, 4))
    assert bubble_fraction(64, 4) == 3 / 67


def test_traffic_is_that_of_rings(large: RunConfig) -> None:
    config = copy_of(large, parallel={"tensor": 8}, training={"activation_checkpointing": "none"})
    traffic = step_time(config, config.phases[0], ranks_of(config, 64), H200).traffic
    residual = 8192 * 2048 * 2  # bytes of a sample's residual stream in bf16
    reduces = 4 * 16 + 2  # two a layer and direction; the embedding's and the head's
    assert traffic.tensor.bytes == pytest.approx(16 * reduces * 2 * 7 / 8 * residual)  # 16 micro-batches of a sample
    assert traffic.pipeline.bytes == 0
    assert traffic.data.bytes > 0


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["h200:0", "h200:x", "h300:8", "h200:", ":8", "h200:-1"])
def test_devices_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--devices: .* names: a100, h100, h200, b200, cpu"):
        parse_devices(text)


def test_an_impossible_topology_is_told_the_nearest(large: RunConfig) -> None:
    (message,) = topology_problems(copy_of(large, parallel={"tensor": 8}), 12, H200)
    assert "12 is not a multiple of parallel.tensor 8" in message
    assert "nearest are 8 or 16 devices, or parallel.tensor=4" in message
    (message,) = topology_problems(large, 48, H200)
    assert "128 samples, which is not a multiple of training.micro_batch_size 2 x 48" in message
    assert "nearest are 32 or 64 devices" in message


def test_devices_that_share_no_batch_are_told_the_nearest() -> None:
    config = load_config(CONFIGS / "quickstart.yaml")
    with pytest.raises(ConfigError, match=r"--devices: 7 cannot be arranged .* can: (6 or )?8"):
        best_plan(config, 7, H200)


def test_what_cannot_fit_names_the_largest_part_and_what_would_do(large: RunConfig) -> None:
    huge = parse_config(
        large.model_dump(mode="json")
        | {"model": large.model.model_dump() | {"hidden_size": 32768, "num_layers": 480, "ffn_size": 28672}}
    )
    said = r"no topology of 1 A100 fits.* needs [\d.]+ GiB .* most of it .*more devices do not help"
    with pytest.raises(ConfigError, match=said):
        best_plan(huge, 1, A100)
