"""What a configuration refuses: one line a problem, with field, value, rule and way out; all of them at once."""

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.config_case import TINY, changed, problems, refused
from training.config import parse_config

# -- one wrong value: one line, with the field, the value, the rule and the way out -----------------------------------


@pytest.mark.parametrize(
    ("key", "value", "field", "words"),
    [
        # unknown keys, wherever they are
        ("modle", {}, "modle", ["unknown", "did you mean 'model'?"]),
        ("model__memory__slost", 3, "model.memory.slost", ["unknown", "did you mean 'slots'?"]),
        ("model__memory__fluw", 3, "model.memory.fluw", ["unknown", "did you mean 'flow'?"]),
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


# -- several problems: all of them ------------------------------------------------------------------------------------


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


# -- values that YAML and Python let through --------------------------------------------------------------------------


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
