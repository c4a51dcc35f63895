"""Scalars keep the text that was typed; the type of a field decides what it is."""

import itertools
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from data_prep.field_values import LARGEST, Refused, core, fit
from data_prep.sources.places import local_path
from data_prep.yaml_reader import Plain, YamlError, read_argument, read_file, read_yaml

LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{following}: &{following} [{','.join(9 * ['*' + before])}]\n"
    for before, following in itertools.pairwise("abcdefg")
)
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "text",
    [
        "12:00:00",
        "0123",
        "20260101_0930",
        "yes",
        "010",
        "1e5",
        "0x1F",
        "2026-01-01",
        ".5",
        "=",
        "<<",
        "1_000",
        "no",
        "-",
    ],
)
def test_text_is_what_was_typed(text: str) -> None:
    for kind in (str, str | None, Path):
        assert fit(read_argument(text), kind) == text
    if text != "-":  # which begins a list in a file
        assert fit(read_yaml(f"a: {text}"), dict[str, str]) == {"a": text}
        assert fit(read_yaml(f"a: [{text}]"), dict[str, tuple[str, ...]]) == {"a": [text]}
        assert fit(read_yaml(f"{text}: 1"), dict[str, int]) == {text: 1}


@pytest.mark.parametrize(
    "text",
    ["exp #5", "a: b", "*x", "&x", "!x", "% x", "@x", "`x", "|", "> x", " x ", "- x", "? x", "'x", '"a" b', "a\nb"],
)
def test_an_override_is_text_and_not_yaml(text: str) -> None:
    assert fit(read_argument(text), str) == text


@pytest.mark.parametrize(("text", "meant"), [("'exp #5'", "exp #5"), ('"a\\nb"', "a\nb"), ("'null'", "null")])
def test_quotes_around_a_whole_override_are_taken_off(text: str, meant: str) -> None:
    assert fit(read_argument(text), str | None) == meant


@pytest.mark.parametrize("text", ['"a\\ud800"', '"\\0"', "a\0", "\ud800", "[a", "{a: 1, a: 2}", "[" * 60])
def test_an_override_that_no_field_takes_is_refused(text: str) -> None:
    with pytest.raises(YamlError):
        read_argument(text)


@pytest.mark.parametrize(
    ("text", "kind", "number"),
    [
        ("010", int, 10),
        ("0o17", int, 15),
        ("0x1F", int, 31),
        ("+5", int, 5),
        ("1e3", int, 1000),
        ("1.0", int, 1),
        ("18446744073709551615", int, LARGEST),
        ("010", float, 10),
        ("5e-4", float, 5e-4),
        (".5", float, 0.5),
        ("1.", float, 1.0),
        ("-.inf", float, -math.inf),
        ("1" + 30 * "0", float, 1e30),
        ("010", Literal["all"] | int | tuple[int, ...], 10),
        ("2", Literal[1, 2, 3], 2),
    ],
)
def test_numbers_are_those_of_the_core_schema(text: str, kind: Any, number: float) -> None:
    found = fit(Plain(text), kind)
    assert found == number and not isinstance(found, str)
    assert fit(text, kind) == number  # in quotes


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("1_000", int, "write 1000"),
        ("1,000", float, "write 1000"),
        ("1:30", int, "no number but a time"),
        ("yes", int, "is yes or no"),
        ("on", float, "is yes or no"),
        ("9" * 23, int, "too large; the largest number is 18,446,744,073,709,551,615"),
        ("1e23", int, "too large"),
        ("7" * 5000, int, "has 5,000 digits"),
        ("1e999", float, "beyond the range"),
        ("1e-999", float, "beyond the range"),
        ("\u0663", int, "valid integer"),
        ("y", bool, "on or off"),
        ("2", bool, "on or off"),
        ("null", str, 'quote it to mean the text: "null"'),
        ("~", Path, 'quote it to mean the text: "~"'),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_reason(text: str, kind: Any, said: str) -> None:
    found = fit(Plain(text), kind)
    assert isinstance(found, Refused) and said in found.reason


def test_switches() -> None:
    words = {True: ("on", "On", "ON", "yes", "true", "True", "1"), False: ("off", "OFF", "no", "No", "false", "0")}
    for value, forms in words.items():
        assert [fit(Plain(form), bool) for form in forms] == [value] * len(forms)
    kind = Literal["auto", "on", "off"]
    assert [fit(Plain(form), kind) for form in ("on", "yes", "true", "no", "False", "auto")] == [
        "on", "on", "on", "off", "off", "auto",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "~", "null", "Null"])
def test_nothing_is_none_where_a_field_may_have_none(text: str) -> None:
    assert fit(read_yaml(f"a: {text}"), dict[str, str | None]) == {"a": None}
    assert fit(read_yaml(f"a: '{text}'"), dict[str, str | None]) == {"a": text}


def test_a_list_where_text_must_be_names_the_quoted_form() -> None:
    found = fit(read_argument("[x]"), str)
    assert isinstance(found, Refused) and "'\"[a]\"'" in found.reason


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: {c: 1, c: 2}", "line 2: key 'c' stands there twice"),
        ("a: 1\n'a': 2", "key 'a' stands there twice"),
        ("a: !!python/object/apply:os.system [x]", "python/object/apply"),
        ("a: !!int 010", "tag 'tag:yaml.org,2002:int' is not read"),
        ("a: !x y", "'!x'"),
        ("a: &x [*x]", "levels deep"),
        ("[" * 3000, "levels deep"),
        ("[" * 60 + "]" * 60, "levels deep"),
        (LAUGHS, "100,000 values"),
        ('a: "\\0"', "zero character"),
        ('a: "\\ud800"', "half of a character"),
        ("? [1]\n: 2", "a key must be text"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: [", "line 1"),
    ],
    ids=range(14),
)  # fmt: skip
def test_what_is_no_configuration_is_one_line(text: str, said: str) -> None:
    with pytest.raises(YamlError) as error:
        read_yaml(text)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(YamlError, match="directory"):
        read_file(tmp_path)
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(YamlError, match="0xff"):
        read_file(tmp_path / "x")


def test_the_published_numbers_are_read_as_before() -> None:
    text = (ROOT / "evaluation" / "report" / "published.yaml").read_text(encoding="utf-8")
    found = core(read_yaml(text))
    assert found == yaml.safe_load(text) and len(found) >= 2


def test_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("~/x") == Path("/home/me/x")
    assert local_path("x~/~y") == Path("x~/~y")
    for path, said in {
        "~nobody-here/x": "an unknown user",
        "a/" + 256 * "x" + "/b": "a name in it has 256 bytes",
        "a/" + 128 * "é" + "/b": "a name in it has 256 bytes",
        50 * ("x" * 99 + "/"): "the whole path 4,999",
    }.items():
        with pytest.raises(ValueError, match=said):
            local_path(path)
    assert local_path("a/" + 255 * "x")
