"""The run configuration: what it accepts, on how many ranks, and the configurations that are shipped."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

import training.planning.dry_run
from model.network import LanguageModel
from tests.unit.training.config_case import TINY, changed
from training.config import RunConfig, dump_yaml, load_config, parse_config
from training.distributed.ranks import RankInfo
from training.distributed.topology import check_world
from training.errors import ConfigError
from training.planning.dry_run import describe

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


# -- what is accepted -------------------------------------------------------------------------------------------------


def test_defaults_and_derived_values(file: Path) -> None:
    config = load_config(file)
    assert config == parse_config(TINY)
    assert (config.parallel.tensor, config.parallel.pipeline) == (1, 1)
    assert config.run.folder == Path("runs/tiny")
    assert config.phases[1].steps == 4  # 1000 tokens rounded up to whole steps of 256
    assert config.total_steps == 8
    assert config.total_tokens == 8 * 256


def test_dumped_configuration_loads_as_itself(file: Path, tmp_path: Path) -> None:
    config = load_config(file, ["training.betas=[0.8, 0.9]", "phases.0.mix={a: 1, ü: 2}", "run.name=näme"])
    again = tmp_path / "again.yaml"
    again.write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(again) == config
    assert dump_yaml(load_config(again)) == dump_yaml(config)


def test_overrides_reach_every_depth(file: Path) -> None:
    config = load_config(
        file,
        [
            "run.name=a=b",
            "parallel.tensor=2",  # a section that the file does not have
            "model.memory.slots=8",
            "phases.1.lr.peak=5e-4",  # YAML reads this one as text
            "phases.0.memory=on",
            "model.rope_scaling={factor: 8}",
            "training.eval_every_steps=3",
        ],
    )
    assert config.run.name == "a=b"
    assert config.parallel.tensor == 2
    assert config.model.memory.slots == 8
    assert [phase.lr.peak for phase in config.phases] == [1e-3, 5e-4]
    assert config.phases[0].memory is True
    assert config.model.rope_scaling is not None
    assert config.model.rope_scaling.factor == 8
    assert config.training.eval_every_steps == 3
    assert load_config(file, ["training.eval_every_steps=3", "training.eval_every_steps="]) == load_config(file)


def test_later_override_wins(file: Path) -> None:
    assert load_config(file, ["run.seed=1", "run.seed=2"]).run.seed == 2


def test_configuration_cannot_be_changed_after_it_was_checked() -> None:
    config = parse_config(TINY)
    with pytest.raises(ValidationError, match="frozen"):
        config.parallel.tensor = 3  # type: ignore[misc]


def test_identity_is_what_the_weights_depend_on() -> None:
    plain = parse_config(TINY).identity()
    free = {
        "run__name": "other",
        "run__output_dir": "elsewhere",
        "data__path": "moved",
        "training__micro_batch_size": 2,
        "training__zero_stage": 2,
        "training__activation_checkpointing": "full",
        "training__stop_after_steps": 1,
        "training__eval_every_steps": 1,
        "parallel__tensor": 2,
        "parallel__pipeline": 2,
        "checkpoint__every_steps": 7,
        "tracking__enabled": False,
    }
    for key, value in free.items():
        raw = changed(**{key: value})
        assert parse_config(raw).identity() == plain, key
    bound = {
        "run__seed": 1,
        "data__sequence_length": 32,
        "data__mix": {"a": 1.0},
        "model__ffn_size": 32,
        "model__memory__slots": 5,
        "phases__1__lr__peak": 2e-3,
        "phases__0__tokens": 2048,
        "training__weight_decay": 0.0,
        "training__precision": "bf16",
        "training__betas": [0.9, 0.99],
        "training__eps": 1e-6,
        "training__gradient_clipping": 2.0,
    }
    for key, value in bound.items():
        assert parse_config(changed(**{key: value})).identity() != plain, key


# -- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "pipeline", "world", "advised"),
    [(2, 1, 1, 2), (2, 1, 3, 4), (2, 2, 2, 4), (1, 2, 5, 6), (2, 2, 6, 8)],
)
def test_world_that_does_not_fit(tensor: int, pipeline: int, world: int, advised: int) -> None:
    config = parse_config(changed(parallel__tensor=tensor, parallel__pipeline=pipeline))
    with pytest.raises(ConfigError) as caught:
        check_world(config, RankInfo(0, world, 0))
    (line,) = str(caught.value).split("\n")
    assert line.startswith(f"parallel: {world} ranks were started")
    assert f"tensor {tensor} x pipeline {pipeline}" in line
    assert f"a multiple of {tensor * pipeline};" in line
    assert f"start {advised} ranks" in line


@pytest.mark.parametrize(("tensor", "world", "fits"), [(2, 1, "tensor=1 parallel.pipeline=1"), (4, 2, "tensor=2")])
def test_world_that_does_not_fit_is_told_what_would(tensor: int, world: int, fits: str) -> None:
    config = parse_config(changed(parallel__tensor=tensor, model__num_kv_heads=4, model__memory__heads=4))
    with pytest.raises(ConfigError, match=f"{world} ranks fit as: parallel.{fits}"):
        check_world(config, RankInfo(0, world, 0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parallel__segment": 2, "data__sequence_length": 48}, "set data.sequence_length to 32 or another multiple"),
        ({"parallel__segment": 2, "model__attention_span": 2}, "attention would need segments of another rank"),
        ({"parallel__segment": 2, "model__memory": {"kind": "rmt"}}, "with memory rmt"),
        (
            {"parallel__tensor": 2, "parallel__sequence": True, "model__memory": {"kind": "rmt"}},
            "parallel.sequence: on",
        ),
        ({"training__offload": "all"}, "needs training.zero_stage 3"),
        ({"training__offload": "optimizer", "parallel__pipeline": 2}, "training.offload=none or parallel.pipeline=1"),
    ],
)
def test_ways_of_sharing_that_do_not_fit(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(changed(**change))


@pytest.mark.parametrize(("tensor", "pipeline", "world"), [(1, 1, 1), (1, 1, 4), (2, 1, 4), (2, 2, 4), (2, 2, 16)])
def test_world_that_fits(tensor: int, pipeline: int, world: int) -> None:
    config = parse_config(changed(parallel__tensor=tensor, parallel__pipeline=pipeline))
    check_world(config, RankInfo(0, world, 0))
    with pytest.raises(ConfigError, match=r"phases\.0\.tokens_per_step: 256 tokens are 4 samples"):
        check_world(config, RankInfo(0, 3 * world, 0))  # three times as many cannot share 4 samples


@pytest.mark.parametrize(("world", "micro", "multiple"), [(3, 1, 192), (1, 3, 192), (2, 4, 512), (8, 1, 512)])
def test_batch_that_the_ranks_cannot_share(world: int, micro: int, multiple: int) -> None:
    config = parse_config(changed(training__micro_batch_size=micro))
    with pytest.raises(ConfigError) as caught:
        check_world(config, RankInfo(0, world, 0))
    (line,) = str(caught.value).split("\n")
    assert line.startswith("phases.0.tokens_per_step: 256 tokens are 4 samples of 64 tokens")
    assert f"{micro} x {world} data-parallel ranks" in line
    assert f"a multiple of {multiple}," in line
    fitting = changed(training__micro_batch_size=micro)
    for phase in fitting["phases"]:
        phase["tokens_per_step"] = multiple
    check_world(parse_config(fitting), RankInfo(0, world, 0))


# -- the configurations that are shipped ------------------------------------------------------------------------------


def test_there_are_configurations_to_check() -> None:
    assert "quickstart.yaml" in [path.name for path in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configuration_is_described_without_allocating(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[LanguageModel] = []

    def recording(*args: Any, **kwargs: Any) -> LanguageModel:
        built.append(LanguageModel(*args, **kwargs))
        return built[-1]

    config: RunConfig = load_config(path)
    monkeypatch.setattr(training.planning.dry_run, "LanguageModel", recording)
    text = describe(config)
    (net,) = built
    held = [*net.parameters(), *net.buffers()]
    assert {tensor.device for tensor in held} == {torch.device("meta")}
    total = sum(parameter.numel() for parameter in net.parameters())
    assert f"{total:,} parameters" in text
    assert f"{config.total_steps:,} steps" in text
    for phase in config.phases:
        assert f"phase {phase.name}: memory {'on' if phase.memory else 'off'}, {phase.steps:,} steps" in text
    assert parse_config(yaml.safe_load(dump_yaml(config))) == config
