"""Values that nobody has typed yet: refused in sentences with a documented exit code, or used as typed.

What is typed is worked out again by other means: PyYAML's BaseLoader, which leaves every scalar as text, and Decimal.
"""

import contextlib
import io
import re
import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launchers import import_hf, pretrain
from model.llama_config import to_llama
from tests.reference.small import NONE, tiny
from tests.unit.data_prep.test_fuzz_inputs import dumped, fuzz
from tests.unit.training.config_case import TINY
from tests.unit.training.test_cluster import LOCAL, job
from tests.unit.training.test_hf_folder import save
from training.cluster.profile import ClusterProfile, load_profile, minutes
from training.cluster.script import training_script
from training.config import RunConfig, dump_yaml, load_config
from training.errors import ConfigError

FIELDS = {
    "run.name": "text", "run.output_dir": "path", "run.seed": "int", "data.path": "path", "data.sequence_length": "int",
    "data.mix": "weights", "data.checksums": "choice", "data.cache.max_bytes": "int", "model.rope_theta": "float",
    "model.hidden_size": "int", "model.tie_embeddings": "bool", "model.memory.slots": "int", "model.init_std": "float",
    "phases.0.name": "text", "phases.0.memory": "bool", "phases.1.tokens": "int", "phases.1.lr.peak": "float",
    "training.compile": "switch", "training.precision": "choice", "training.zero_stage": "int",
    "training.weight_decay": "float", "training.eval_every_steps": "int", "checkpoint.asynchronous": "bool",
    "checkpoint.keep_every_steps": "int", "faults.spike_factor": "float", "tracking.experiment": "text",
    "tracking.uri": "text", "tracking.enabled": "bool", "tracking.system_seconds": "float",
}  # fmt: skip
SPELLINGS = """0123 010 0o17 0x1F 12:00:00 1:30 20260101_0930 1_000 1,000 yes No on OFF true null ~ Null .inf -.INF .nan
1e3 1e-4 5E+2 +5 -1 1. .5 1.0 1e400 1e-400 9007199254740993 18446744073709551616 2026-01-01 = << * &a !!int [ ] { } [a]
{a:1} 'a' "a" 'a "a\\ud800" # a#b - ? | > % @ ` never bf16 fp32 2 4 16 64 1024 0.5 \u0663 \u2028 \x85 ~/x ~nobody/x"""
SPELLED = st.sampled_from(["", *re.split("[ \n]", SPELLINGS)])
TEXTS = st.one_of(
    SPELLED,
    st.text(max_size=8),
    st.lists(SPELLED, min_size=2, max_size=3).map(" ".join),
    st.from_regex(r"[-+]?[0-9_]{1,4}(\.[0-9]{0,3})?([eE][-+]?[0-9]{1,3})?", fullmatch=True),
    st.integers().map(str),
    st.floats(allow_nan=False).map(repr),
    st.text(st.characters(codec="utf-8"), min_size=200, max_size=300),
)
SWITCHES = {"on": True, "yes": True, "true": True, "1": True, "off": False, "no": False, "false": False, "0": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("values")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    return folder


def at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[int(part)] if part.isdigit() else getattr(config, part)
    return config


def number(text: str) -> Decimal | None:
    """What a number's spelling means, by other means than the reader's."""
    text = text.strip(" ")
    with contextlib.suppress(ValueError):
        if text[:2] in ("0x", "0o"):
            return Decimal(int(text, 0))
    try:
        return None if "_" in text else Decimal(text.replace(".inf", "inf").replace(".INF", "inf"))
    except InvalidOperation:
        return None


def is_as_typed(found: Any, typed: str, kind: str, quoted: bool) -> bool:
    """Whether a field that was accepted holds what its text says; `quoted`: text in quotes is never null."""
    if found is None:
        return typed in ("", "~", "null", "Null", "NULL") and not quoted
    if kind == "bool":
        return SWITCHES.get(typed.lower()) is found
    if kind == "switch":
        return found == typed or found == {True: "on", False: "off"}[SWITCHES[typed.lower()]]
    if kind in ("int", "float"):
        meant = number(typed)
        assert meant is not None and typed.strip(" ").isascii(), typed
        return Decimal(found) == meant if kind == "int" else found == float(meant)
    if kind == "path":
        return str(found) in (str(Path(typed)), str(Path(typed).expanduser()), typed)
    if kind == "text" and typed.startswith("sqlite:///~"):
        return str(found).startswith("sqlite:////")
    return bool(found == typed)


def accepted(load: Any) -> Any:
    """The configuration, or None when it was refused in sentences that can be printed."""
    try:
        return load()
    except ConfigError as error:
        assert str(error).strip() and "Traceback" not in str(error) and "<class" not in str(error)
        return None


def in_brackets(text: str) -> bool:
    return text.strip().startswith(("[", "{"))


@fuzz(450)
@given(key=st.sampled_from(list(FIELDS)), text=TEXTS)
def test_overrides(place: Path, key: str, text: str) -> None:
    config = accepted(lambda: load_config(place / "tiny.yaml", [f"{key}={text}"]))
    if config is None:
        return
    found = at(config, key)
    quoted = text.strip()[:1] in ("'", '"') and str(found) != text
    typed = yaml.load(text, Loader=yaml.BaseLoader) if quoted or in_brackets(text) else text
    if FIELDS[key] == "weights":
        assert found is None or {name: float(value) for name, value in typed.items()} == found
    else:
        assert is_as_typed(found, typed, FIELDS[key], quoted), (found, typed)
    again = place / "again.yaml"
    again.write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(again) == config


@fuzz(300)
@given(key=st.sampled_from([key for key, kind in FIELDS.items() if kind != "weights"]), text=TEXTS)
def test_files(place: Path, key: str, text: str) -> None:
    raw: Any = yaml.safe_load((place / "tiny.yaml").read_text(encoding="utf-8"))
    *parents, last = key.split(".")
    node = raw
    for part in parents:
        node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
    node[last] = "TYPED HERE"
    path = place / "typed.yaml"
    path.write_bytes(yaml.safe_dump(raw).replace("TYPED HERE", text).encode("utf-8", "surrogatepass"))
    config = accepted(lambda: load_config(path))
    if config is None:
        return
    typed: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    for part in key.split("."):
        typed = typed[int(part)] if part.isdigit() else typed[part]
    if isinstance(typed, str):
        assert is_as_typed(at(config, key), typed, FIELDS[key], text.lstrip()[:1] in ("'", '"')), typed


@fuzz(200)
@given(
    lines=st.lists(st.tuples(st.sampled_from(["run", "data", "model", "a", "? ", "<<"]), TEXTS), max_size=5),
    cut=st.integers(0, 400), new=TEXTS,
)  # fmt: skip
def test_any_text_as_a_file(place: Path, lines: list[tuple[str, str]], cut: int, new: str) -> None:
    text = (place / "tiny.yaml").read_text(encoding="utf-8")
    text = text[:cut] + new + text[cut:] + "".join(f"{key}: {value}\n" for key, value in lines)
    path = place / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    config = accepted(lambda: load_config(path))
    assert config is None or isinstance(config, RunConfig)


@fuzz(40)
@given(
    overrides=st.lists(
        st.one_of(st.text(max_size=12), st.tuples(st.sampled_from(list(FIELDS)), TEXTS).map("=".join)), max_size=3
    )
)
def test_the_command(place: Path, overrides: list[str]) -> None:
    overrides = [text for text in overrides if not text.startswith("-")]  # which are options
    out, err = io.StringIO(), io.StringIO()
    command = ["pretrain.py", "--config", str(place / "tiny.yaml"), "--print-config", *overrides]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.object(sys, "argv", command):
        code = pretrain.main()
    assert code in (0, 2) and (bool(out.getvalue()), bool(err.getvalue())) == (code == 0, code == 2)
    if code == 0:
        path = place / "printed.yaml"
        path.write_text(out.getvalue(), encoding="utf-8")
        assert load_config(path) == load_config(place / "tiny.yaml", overrides)


PROFILE = {
    "partition": "text", "account": "text", "qos": "text", "time": "text", "nodes": "int", "ranks_per_node": "int",
    "memory": "text", "constraint": "text", "venv": "path", "signal_seconds": "int", "data.cpus": "int",
    "data.time": "text", "preflight.enabled": "bool", "preflight.min_disk_gib": "float", "variables.A": "text",
}  # fmt: skip
LIMITS = st.from_regex(r"[0-9]{1,3}(-[0-9]{1,2})?(:[0-9]{1,2}){0,3}|[0-9]{1,4}[MGT]", fullmatch=True)


@fuzz(250)
@given(key=st.sampled_from(list(PROFILE)), text=st.one_of(TEXTS, LIMITS), in_file=st.booleans())
def test_cluster_profiles(place: Path, key: str, text: str, in_file: bool) -> None:
    typed: Any = text
    quoted = text.strip()[:1] in ("'", '"')
    if in_file:
        path = place / "cluster.yaml"
        *section, last = key.split(".")
        kept = [line for line in LOCAL.read_text().splitlines() if not line.startswith((f"{key.split('.')[0]}:", " "))]
        content = [f"{section[0]}:", f"  {last}: {text}"] if section else [f"{key}: {text}"]
        kept = [line for line in kept if line != "preflight:"] + content
        path.write_bytes("\n".join(kept).encode("utf-8", "surrogatepass"))
        profile = accepted(lambda: load_profile(path))
        if profile is not None:
            typed = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
            for part in key.split("."):
                typed = typed[part]
    else:
        profile = accepted(lambda: load_profile(LOCAL, [f"cluster.{key}={text}"]))
    if profile is None:
        return
    assert isinstance(profile, ClusterProfile)
    found = profile.variables["A"] if key == "variables.A" else at(profile, key)
    if quoted and not in_file and str(found) != text:
        typed = yaml.load(text, Loader=yaml.BaseLoader)
    assert is_as_typed(found, typed, PROFILE[key], quoted), (found, typed)
    assert minutes(profile.time) * 60 > profile.signal_seconds
    if key == "time":
        assert f"#SBATCH --time={typed}" in training_script(job(place), profile).splitlines()


HOSTS = st.from_regex(r"[a-z]{1,3}[0-9]{0,3}(\[[0-9,-]{0,6}\]?)?", fullmatch=True)


@fuzz(100)
@given(hosts=st.lists(st.one_of(HOSTS, TEXTS), min_size=1, max_size=3))
def test_hostlists(hosts: list[str]) -> None:
    try:
        flow = yaml.safe_dump(hosts, default_style='"', width=10**9)
        given_hosts = "[" + ", ".join(line[2:] for line in flow.splitlines()) + "]"
    except yaml.YAMLError:
        return
    profile = accepted(lambda: load_profile(LOCAL, [f"cluster.exclude={given_hosts}"]))
    plain = [host for host in hosts if host.isascii() and host.isalnum()]
    if profile is not None:
        assert set(plain) <= set(profile.exclude)
    else:
        assert len(plain) < len(hosts)


SPELLED_SIZES = '128 1e2 128.0 0128 +1 1_0 "128" NaN Infinity -1 null true []'
SIZES = [*re.split(" ", SPELLED_SIZES), "9" * 23, "7" * 5000]


@fuzz(60)
@given(
    key=st.sampled_from(["vocab_size", "hidden_size", "num_hidden_layers", "rms_norm_eps", "rope_theta", "head_dim"]),
    raw=st.one_of(st.sampled_from(SIZES), st.integers().map(str), st.floats().map(dumped), st.text(max_size=4)),
)  # fmt: skip
def test_spellings_in_config_json(place: Path, key: str, raw: str) -> None:
    folder = place / "llama"
    if not folder.exists():
        save(folder, tiny(NONE))
    content = dumped(to_llama(tiny(NONE), 64, "float32") | {key: "TYPED HERE"}).replace('"TYPED HERE"', raw)
    (folder / "config.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    out, err = io.StringIO(), io.StringIO()
    command = mock.patch.object(sys, "argv", ["import_hf.py", str(folder)])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), command:
        code = import_hf.main()
    assert code in (0, 2) and (bool(out.getvalue()), bool(err.getvalue())) == (code == 0, code == 2), err.getvalue()
    if code == 0 and raw != "null":
        names = {"num_hidden_layers": "num_layers", "rms_norm_eps": "norm_eps"}
        section = yaml.safe_load(out.getvalue())["model"]
        name = names.get(key, key)
        default = {"rope_theta": 500000.0, "norm_eps": 1e-5, "head_dim": section["hidden_size"] // section["num_heads"]}
        assert float(section.get(name, default.get(name))) == float(raw)
