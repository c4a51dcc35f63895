"""What was typed is what is used, in files and in overrides; what is no configuration is refused in one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.training.config_case import changed, problems, refused
from training.config import RunConfig, load_config
from training.config.family import load_family

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


# -- what was typed is what is used -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("run.name", "20260101_0930", "20260101_0930"),
        ("run.name", "0123", "0123"),
        ("run.name", "2026-01-01", "2026-01-01"),
        ("run.name", "12:00:00", "12:00:00"),
        ("data.path", "1e5", Path("1e5")),
        ("data.references", "0123", Path("0123")),
        ("data.mix", "{on: 1, 01: 2}", {"on": 1.0, "01": 2.0}),
        ("tracking.experiment", "yes", "yes"),
        ("tracking.uri", "null", None),
        ("run.seed", "010", 10),
        ("model.rope_theta", "1e6", 1e6),
        ("training.compile", "on", "on"),
        ("training.compile", "true", "on"),
        ("training.compile", "no", "off"),
        ("phases.0.memory", "off", False),
        ("tracking.enabled", "No", False),
        ("checkpoint.keep_every_steps", "~", None),
    ],
)
def test_files_and_overrides_read_the_same(file: Path, key: str, text: str, value: Any) -> None:
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    *parents, last = key.split(".")
    node = raw
    for part in parents:
        node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
    node[last] = "TYPED"
    typed = file.with_name("typed.yaml")
    typed.write_text(yaml.safe_dump(raw).replace("TYPED", text), encoding="utf-8")
    for config in (load_config(typed), load_config(file, [f"{key}={text}"])):
        found: Any = config
        for part in key.split("."):
            found = found[int(part)] if part.isdigit() else getattr(found, part)
        assert (getattr(found, "path", found) == value and type(getattr(found, "path", found)) is type(value)) or (
            isinstance(value, Path) and found == value
        )


def test_an_override_has_no_comment(file: Path) -> None:
    assert load_config(file, ["run.name=exp #5"]).run.name == "exp #5"
    assert load_config(file, ["data.mix={a#b: 1}"]).data.mix == {"a#b": 1.0}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.name=null", "run.name: 'null' means that there is no value; quote it to mean the text: \"null\""),
        ("run.name=[x]", "quote it to mean the text"),
        ("run.name=[x", "to mean the text: run.name="),
        ("run.seed=1_000", "run.seed: '1_000' is no number in YAML 1.2; write 1000"),
        ("run.seed=" + "9" * 23, "the largest number is 18,446,744,073,709,551,615"),
        ("run.seed=yes", "run.seed: 'yes' is yes or no, but must be a number"),
        ("training.betas=[0.9, 1:30]", "training.betas.1: '1:30' is no number but a time"),
        ("run.name=" + "n" * 256, "has 256 bytes, but becomes a folder's name, which has at most 255"),
        ("run.name=" + "é" * 128, "has 256 bytes"),
        ("run.output_dir=a/" + "n" * 300, "run.output_dir: "),
        ("data.path=" + "n" * 300, "data.path: "),
        ("tracking.experiment=" + "e" * 501, "at most 500 characters"),
        ("run.output_dir=~nobody-here/x", "the home of an unknown user"),
        ("run.name=\udcff", "UTF-8 cannot represent"),
    ],
)
def test_what_was_typed_is_refused_with_its_rule(file: Path, override: str, said: str) -> None:
    (line,) = refused(file, override)
    assert said in line


def test_a_seed_has_64_bits(file: Path) -> None:
    assert load_config(file, [f"run.seed={2**64 - 1}"]).run.seed == 2**64 - 1
    (line,) = problems(changed(run__seed=2**64))
    assert line.startswith("run.seed: ") and str(2**64 - 1) in line


def test_home_in_every_path(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    overrides = ["run.output_dir=~/runs", "phases.0.init_from=hf:~/llama", "tracking.uri=sqlite:///~/m.db"]
    config = load_config(file, [*overrides, "data.path=~/data", "phases.1.init_from=checkpoint:~/c"])
    assert config.run.folder == Path("/home/me/runs/tiny")
    assert [phase.init_from for phase in config.phases] == ["hf:/home/me/llama", "checkpoint:/home/me/c"]
    assert config.tracking.uri == "sqlite:////home/me/m.db"
    assert config.data.path == Path("~/data")  # as typed: its users replace it, and the hash of settings stays


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_and_resolved_ones_are_read_as_yaml_1_1_read_them(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config == RunConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    resolved = tmp_path / "config.yaml"
    resolved.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    assert load_config(resolved) == config


def test_a_section_without_content_can_be_filled_by_overrides(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(file.read_text(encoding="utf-8") + "checkpoint:\n", encoding="utf-8")
    assert load_config(path, ["checkpoint.every_steps=7"]).checkpoint.every_steps == 7


def test_overrides_of_a_family_are_what_was_typed(file: Path) -> None:
    family = file.with_name("family.yaml")
    family.write_text(
        "base: tiny.yaml\noverrides:\n  - tracking.experiment=two  spaces #1\n  - |\n    data.mix={a: 1,\n      b: 2}\n"
        "runs: {010: [run.name=0123], no: [run.seed=010]}\n",
        encoding="utf-8",
    )
    first, second = load_family(family)
    assert first.config.run.name == "0123" and second.config.run.name == "family-no"
    assert second.config.run.seed == 10
    assert first.config.tracking.experiment == "two  spaces"  # in a file, # after a space begins a comment
    assert first.config.data.mix == {"a": 1.0, "b": 2.0}


# -- overrides and files ----------------------------------------------------------------------------------------------


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
    (line,) = refused(path)
    assert line.startswith(f"--config: {path}") and "key 'run' stands there twice" in line
