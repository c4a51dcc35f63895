"""The run configuration: what it accepts, and one line a problem for what it does not, all lines at once."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

import training.planning.dry_run
from model.network import LanguageModel
from training.config import RunConfig, dump_yaml, load_config, parse_config
from training.distributed.ranks import RankInfo
from training.distributed.topology import check_world
from training.errors import ConfigError
from training.planning.dry_run import describe

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))

TINY: dict[str, Any] = {
    "run": {"name": "tiny", "output_dir": "runs"},
    "data": {"path": "data", "sequence_length": 64},
    "model": {
        "vocab_size": 512,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_size": 64,
        "segment_length": 16,
        "memory": {"kind": "lm2", "flow": "time", "slots": 4, "heads": 2},
    },
    "phases": [
        {"name": "warmup", "memory": False, "tokens": 1024, "tokens_per_step": 256, "lr": {"peak": 1e-3}},
        {"name": "memory", "memory": True, "tokens": 1000, "tokens_per_step": 256, "lr": {"peak": 1e-3}},
    ],
    "training": {"micro_batch_size": 1},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """`TINY` as a YAML file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    return path


def changed(**values: Any) -> dict[str, Any]:
    """`TINY` with values at paths written with `__` for the dot."""
    raw = copy.deepcopy(TINY)
    for key, value in values.items():
        *parents, last = [int(part) if part.isdigit() else part for part in key.split("__")]
        node: Any = raw
        for part in parents:
            node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
        node[last] = value
    return raw


def problems(raw: dict[str, Any]) -> list[str]:
    """The lines of the refusal."""
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    return str(caught.value).split("\n")


def refused(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides))
    return str(caught.value).split("\n")


# -- what is accepted ------------------------------------------------------------------------------------------------


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


# -- one wrong value: one line, with the field, the value, the rule and the way out ----------------------------------


@pytest.mark.parametrize(
    ("key", "value", "field", "words"),
    [
        # unknown keys, wherever they are
        ("modle", {}, "modle", ["unknown", "did you mean 'model'?"]),
        ("model__memory__slost", 3, "model.memory.slost", ["unknown", "did you mean 'slots'?"]),
        ("phases__0__lr__paek", 1, "phases.0.lr.paek", ["unknown", "did you mean 'peak'?"]),
        ("phases__1__token", 1, "phases.1.token", ["unknown", "did you mean 'tokens'?"]),
        ("tracking__ur", "x", "tracking.ur", ["unknown", "did you mean 'uri'?"]),
        ("parallel__zzzz", 1, "parallel.zzzz", ["unknown", "pipeline, segment, sequence, tensor"]),
        # wrong types
        ("model__hidden_size", "wide", "model.hidden_size", ["'wide'", "integer"]),
        ("model__hidden_size", [32], "model.hidden_size", ["[32]", "integer"]),
        ("model__hidden_size", 32.5, "model.hidden_size", ["32.5", "integer"]),
        ("model__hidden_size", None, "model.hidden_size", ["None", "integer"]),
        ("phases__0__memory", "maybe", "phases.0.memory", ["'maybe'", "boolean"]),
        ("phases__0__lr__peak", "high", "phases.0.lr.peak", ["'high'", "number"]),
        ("phases__0__lr", 1e-3, "phases.0.lr", ["0.001"]),
        ("run__name", ["a"], "run.name", ["['a']", "string"]),
        ("data__path", 3, "data.path", ["3", "path"]),
        # values outside their range
        ("model__num_layers", 0, "model.num_layers", ["0", "greater than 0"]),
        ("run__seed", -1, "run.seed", ["-1", "greater than or equal to 0"]),
        ("training__zero_stage", 4, "training.zero_stage", ["4", "1, 2 or 3"]),
        ("training__zero_stage", 0, "training.zero_stage", ["0", "1, 2 or 3"]),
        ("training__precision", "fp16", "training.precision", ["'fp16'", "'fp32' or 'bf16'"]),
        ("training__betas", [0.9, 1.5], "training.betas.1", ["1.5", "less than"]),
        ("phases__0__lr__peak", float("nan"), "phases.0.lr.peak", ["nan", "finite number"]),
        ("phases__0__lr__final_fraction", 1.5, "phases.0.lr.final_fraction", ["1.5", "less than or equal to 1"]),
        ("phases__0__lr__schedule", "linear", "phases.0.lr.schedule", ["'linear'", "'wsd' or 'cosine'"]),
        ("phases__0__init_from", "hf:", "phases.0.init_from", ["'hf:'", "hf:FOLDER"]),
        ("phases__0__init_from", "nowhere", "phases.0.init_from", ["'nowhere'", "previous, scratch"]),
        ("phases", [], "phases", ["[]", "at least 1"]),
        ("run__name", "", "run.name", ["''", "at least 1"]),
        ("run__name", "a/b", "run.name", ["'a/b'", "one folder"]),
        ("run__name", "..", "run.name", ["'..'", "one folder"]),
        ("run__name", "a\0b", "run.name", ["one folder"]),
        ("data__mix", {"a": -1}, "data.mix", ["'a'", "-1", "at least 0"]),
        # values that do not fit each other inside a section
        ("model__num_heads", 6, "model", ["hidden_size 32", "num_heads 6", "multiple"]),
        ("model__num_kv_heads", 3, "model", ["num_heads 4", "num_kv_heads 3", "multiple"]),
        ("model__head_dim", 3, "model", ["head width 3", "even"]),
        ("model__memory__heads", 3, "model", ["memory.heads 3", "hidden_size 32"]),
        ("model__memory__layers", [0, 9], "model", ["memory.layers", "[9]", "num_layers is 2"]),
        ("model__memory__layers", 3, "model", ["memory.layers 3", "num_layers is 2"]),
        ("model__memory__kind", "none", "model.memory", ["flow 'time'", "remove flow"]),
        ("phases__0__trains", "memory", "phases.0", ["'memory'", "memory: on"]),
        ("phases__1__lr__warmup_tokens", 1001, "phases.1", ["1,001", "1,000", "shorten"]),
        # values that do not fit another section
        ("parallel__pipeline", 3, "parallel.pipeline", ["3 stages", "num_layers is 2", "2 or less"]),
        ("parallel__segment", 3, "parallel.segment", ["3 ranks", "samples of 64", "another multiple of 48"]),
        ("phases__1__tokens_per_step", 250, "phases.1.tokens_per_step", ["250", "sequence_length 64", "multiple"]),
        ("phases__1__memory", False, None, []),
        ("model__memory", {"kind": "none"}, "phases.1.memory", ["on", "none", "memory: off"]),
        ("phases__1__name", "warmup", "phases", ["'warmup', 'warmup'", "differ"]),
    ],
)
def test_one_problem_is_one_line(key: str, value: Any, field: str | None, words: list[str]) -> None:
    raw = changed(**{key: value})
    if field is None:  # the counter-example in the table: a run without any memory phase is fine
        parse_config(raw)
        return
    (line,) = problems(raw)
    name, _, rest = line.partition(": ")
    assert name == field
    assert all(word in rest for word in words), line


@pytest.mark.parametrize(
    ("section", "key"), [("run", "name"), ("data", "path"), ("model", "vocab_size"), ("training", "micro_batch_size")]
)
def test_missing_key_says_how_to_set_it(section: str, key: str) -> None:
    raw = copy.deepcopy(TINY)
    del raw[section][key]
    assert problems(raw) == [f"{section}.{key}: missing; set it in the file or with {section}.{key}=VALUE"]


def test_missing_key_of_a_phase() -> None:
    raw = copy.deepcopy(TINY)
    del raw["phases"][1]["lr"]["peak"]
    assert problems(raw) == ["phases.1.lr.peak: missing; set it in the file or with phases.1.lr.peak=VALUE"]


def test_tensor_parallel_needs_divisible_shapes() -> None:
    raw = changed(parallel__tensor=3)
    raw["model"] |= {"num_heads": 4, "num_kv_heads": 4, "ffn_size": 65, "vocab_size": 511}
    found = dict(line.split(": ", 1) for line in problems(raw))
    names = ["num_heads", "num_kv_heads", "ffn_size", "vocab_size", "memory.heads"]
    assert list(found) == [f"model.{name}" for name in names]
    for name, value, divisors in (("ffn_size", 65, [1, 5, 13, 65]), ("num_heads", 4, [1, 2, 4])):
        text = found[f"model.{name}"]
        assert f"{value} is not divisible by parallel.tensor 3" in text
        assert str(divisors) in text
        assert f"change model.{name}" in text


def test_divisors_that_are_proposed_are_accepted() -> None:
    for tensor in (1, 2):
        assert parse_config(changed(parallel__tensor=tensor)).parallel.tensor == tensor
    (line,) = problems(changed(parallel__tensor=4, model__num_kv_heads=4))
    assert line.startswith("model.memory.heads: 2 is not divisible")


def test_memory_heads_do_not_matter_without_a_memory() -> None:
    raw = changed(parallel__tensor=4, model__num_kv_heads=4, model__memory={"kind": "none"}, phases__1__memory=False)
    assert parse_config(raw).parallel.tensor == 4


@pytest.mark.parametrize("stage", [2, 3])
def test_pipeline_refuses_sharded_gradients(stage: int) -> None:
    (line,) = problems(changed(parallel__pipeline=2, training__zero_stage=stage))
    assert line.startswith(f"training.zero_stage: {stage} with parallel.pipeline 2")
    assert "training.zero_stage=1" in line
    assert "parallel.pipeline=1" in line
    assert parse_config(changed(training__zero_stage=2)).training.zero_stage == 2
    assert parse_config(changed(parallel__pipeline=2)).parallel.pipeline == 2


def test_memory_phases_may_only_come_last() -> None:
    (line,) = problems(changed(phases__0__memory=True, phases__1__memory=False))
    assert line.startswith("phases.1.memory: off after an on phase")
    assert parse_config(changed(phases__0__memory=True, phases__1__memory=False, phases__1__init_from="scratch"))


def test_memory_alone_needs_a_trained_backbone() -> None:
    raw = changed(phases__0__memory=True, phases__0__trains="memory")
    (line,) = problems(raw)
    assert line.startswith("phases.0.trains: ")
    assert "init_from" in line
    raw["phases"][0]["init_from"] = "hf:llama"
    assert parse_config(raw).phases[0].trains == "memory"


# -- several problems: all of them -----------------------------------------------------------------------------------


def test_all_wrong_fields_are_reported_at_once() -> None:
    raw = changed(
        run__nam="x",
        model__hidden_size=-1,
        model__memory__slost=3,
        phases__1__lr__paek=1,
        phases__1__tokens=0,
        training__zero_stage=9,
        tracking__enabled="perhaps",
        parallel__tenser=2,
    )
    del raw["data"]["path"]
    fields = {line.partition(":")[0] for line in problems(raw)}
    assert fields == {
        "run.nam",
        "data.path",
        "model.hidden_size",
        "model.memory.slost",
        "phases.1.lr.paek",
        "phases.1.tokens",
        "training.zero_stage",
        "tracking.enabled",
        "parallel.tenser",
    }


def test_all_misfits_between_sections_are_reported_at_once() -> None:
    raw = changed(
        parallel__tensor=3,
        parallel__pipeline=5,
        parallel__segment=3,
        training__zero_stage=3,
        phases__0__tokens_per_step=100,
        phases__1__name="warmup",
    )
    fields = [line.partition(":")[0] for line in problems(raw)]
    assert len(fields) == len(set(fields))
    assert {
        "model.num_heads",
        "model.num_kv_heads",
        "model.ffn_size",
        "model.vocab_size",
        "model.memory.heads",
        "parallel.pipeline",
        "parallel.segment",
        "training.zero_stage",
        "phases.0.tokens_per_step",
        "phases",
    } == set(fields)


def test_a_wrong_phase_is_not_also_called_missing() -> None:
    raw = changed(phases__0__tokens=0)
    del raw["phases"][1]
    (line,) = problems(raw)
    assert line.startswith("phases.0.tokens: 0 ")


def test_wrong_field_does_not_hide_a_misfit() -> None:
    lines = problems(changed(run__nam="x", parallel__pipeline=3))
    assert [line.partition(":")[0] for line in lines] == ["run.nam", "parallel.pipeline"]


def test_all_bad_overrides_are_reported_at_once(file: Path) -> None:
    assert len(refused(file, "nonsense", "phases.7.tokens=3", "run.nam=x")) == 3


# -- values that YAML and Python let through -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("parallel__tensor", True),  # `tensor: yes` would be 1
        ("phases__0__lr__peak", float("inf")),
        ("training__betas", [0.9, 1.0]),  # AdamW itself refuses it later, with a traceback
        ("phases__0__mix", {"a": -1.0}),  # as data.mix does
    ],
)
def test_values_that_cannot_work_are_refused(key: str, value: Any) -> None:
    (line,) = problems(changed(**{key: value}))
    assert line.startswith(key.replace("__", "."))


def test_wrong_memory_layers_is_one_line() -> None:
    (line,) = problems(changed(model__memory__layers="some"))
    assert line.startswith("model.memory.layers: ")


# -- overrides and files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("nonsense", ["'nonsense'", "section.key=value"]),
        ("=3", ["'=3'", "section.key=value"]),
        ("a..b=3", ["'a..b=3'", "section.key=value"]),
        ("phases.7.tokens=3", ["'7'", "0 to 1"]),
        ("phases.-1.tokens=3", ["'-1'", "0 to 1"]),
        ("phases.warmup.tokens=3", ["'warmup'", "0 to 1"]),
        ("phases.2={}", ["'2'", "0 to 1"]),
        ("run.name.first=x", ["'name'", "'tiny'", "not a section"]),
        ("modle.hidden_size=3", ["modle", "did you mean 'model'?"]),
        ("model.memory.slost=3", ["model.memory.slost", "did you mean 'slots'?"]),
        ("phases.0.tokens=many", ["phases.0.tokens", "'many'", "integer"]),
        ("run.name=", ["run.name", "None", "string"]),
    ],
)
def test_bad_override_is_one_line(file: Path, override: str, words: list[str]) -> None:
    (line,) = refused(file, override)
    assert all(word in line for word in words), line


def test_yaml_tag_in_a_file_executes_nothing(tmp_path: Path) -> None:
    trap, path = tmp_path / "executed", tmp_path / "evil.yaml"
    path.write_text(f"run: !!python/object/apply:os.system ['touch {trap}']\n", encoding="utf-8")
    (line,) = refused(path)
    assert str(path) in line
    assert "python/object/apply" in line
    assert not trap.exists()


def test_yaml_tag_in_an_override_executes_nothing(file: Path, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    (line,) = refused(file, f"run.seed=!!python/object/apply:os.system ['touch {trap}']")
    assert line.startswith("run.seed: ")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["NoneType", "sections"]),
        (b"- a\n- b\n", ["list", "sections"]),
        (b"run", ["str", "sections"]),
        (b"run: [", ["YAML", "line 1"]),
        (b"\xff\xfe\x00", ["YAML", "0xff"]),
        (b"run: \x00", ["YAML"]),
        (b"? [1, 2]\n: 3\n", ["YAML"]),
    ],
)
def test_file_that_is_no_configuration_is_one_line(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    (line,) = refused(path)
    assert line.startswith(f"--config: {path}")
    assert all(word in line for word in words), line


def test_missing_file_and_folder_in_its_place(tmp_path: Path) -> None:
    (line,) = refused(tmp_path / "absent.yaml")
    assert "absent.yaml does not exist" in line
    assert "configs/quickstart.yaml" in line
    (line,) = refused(tmp_path)
    assert str(tmp_path) in line


def test_key_that_is_there_twice_is_refused(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(file.read_text(encoding="utf-8") + "\nrun: {name: other}\n", encoding="utf-8")
    refused(path)


# -- ranks -----------------------------------------------------------------------------------------------------------


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
        ({"parallel__segment": 2, "model__attention_span": 2}, "attention would cross ranks"),
        ({"parallel__segment": 2, "model__memory": {"kind": "rmt"}}, "with memory rmt"),
        (
            {"parallel__tensor": 2, "parallel__sequence": True, "model__memory": {"kind": "rmt"}},
            "parallel.sequence: on",
        ),
        ({"training__offload": "all"}, "needs training.zero_stage=3"),
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


@pytest.mark.parametrize(("world", "micro", "multiple"), [(3, 1, 192), (1, 3, 192), (2, 4, 512), (8, 1, 512)])
def test_batch_that_the_ranks_cannot_share(world: int, micro: int, multiple: int) -> None:
    config = parse_config(changed(training__micro_batch_size=micro))
    with pytest.raises(ConfigError) as caught:
        check_world(config, RankInfo(0, world, 0))
    (line,) = str(caught.value).split("\n")
    assert line.startswith("phases.0.tokens_per_step: 256 are 4 samples of 64")
    assert f"{micro} x {world} data-parallel ranks" in line
    assert f"a multiple of {multiple}," in line
    fitting = changed(training__micro_batch_size=micro)
    for phase in fitting["phases"]:
        phase["tokens_per_step"] = multiple
    check_world(parse_config(fitting), RankInfo(0, world, 0))


# -- the configurations that are shipped -----------------------------------------------------------------------------


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
