"""Lines and JSON as others write them: separators inside strings, large integers, deep nesting."""

import json
from pathlib import Path

import pytest

from data_prep import DataError
from data_prep.files import encodes, lines_of, parse_json
from evaluation.babilong.facts import read_babi
from evaluation.babilong.released import load_released
from evaluation.tables import _lines
from launchers.generate import read_prompt
from training.errors import ConfigError

SEPARATORS = ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e")


def test_only_a_newline_ends_a_line() -> None:
    for sign in SEPARATORS:
        assert lines_of(f"a{sign}b\nc") == [f"a{sign}b", "c"]
    assert lines_of("a\n\nb\n") == ["a", "", "b"]
    assert lines_of("\ufeffa") == ["a"] and lines_of("") == [] and lines_of("\n") == [""]


def test_numbers_that_python_does_not_read_are_no_obstacle() -> None:
    assert parse_json('{"n": 12, "x": 1.5}') == {"n": 12, "x": 1.5}
    found = parse_json(f'{{"text": "kept", "n": {"9" * 5000}, "m": [-{"8" * 4301}]}}')
    assert found == {"text": "kept", "n": float("inf"), "m": [float("-inf")]}
    for text in ("[" * 100_000, '{"a": ', "", '{"n": ' + "9" * 5000):
        with pytest.raises(ValueError):
            parse_json(text)
    assert encodes("é\U0001f642") and not encodes("\ud800")


@pytest.mark.parametrize("sign", SEPARATORS)
def test_released_samples_keep_their_separators(tmp_path: Path, sign: str) -> None:
    row = {"input": f"Mary went{sign}home.", "question": f"Where{sign}is Mary?", "target": "home"}
    (tmp_path / "qa1").mkdir()
    text = json.dumps(row, ensure_ascii=False) + "\n"
    escaped = text if sign not in "\x0b\x0c\x1c\x1e" else json.dumps(row) + "\n"  # JSON escapes control characters
    (tmp_path / "qa1" / "0k.jsonl").write_text(escaped * 2, encoding="utf-8")
    found = load_released(str(tmp_path), "qa1", "0k")
    assert [(s.context, s.question, s.answer) for s in found] == [tuple(row.values())] * 2
    assert [json.loads(line) for line in _lines(tmp_path / "qa1" / "0k.jsonl")] == [row] * 2


def test_facts_with_a_separator_are_one_fact(tmp_path: Path) -> None:
    path = tmp_path / "qa1_test.txt"
    path.write_text("1 Mary went\u2028home.\r\n2 Where is Mary?\thome\t1\r\n", encoding="utf-8")
    (found,) = read_babi(path)
    assert (found.facts, found.answer, found.supporting) == (("Mary went\u2028home.",), "home", (0,))


def test_released_samples_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "qa1").mkdir()
    path = tmp_path / "qa1" / "0k.jsonl"
    row = {"input": "Mary went home.", "question": "Where?", "target": "home"}
    path.write_text(json.dumps(row | {"id": 0}).replace('"id": 0', '"id": ' + "7" * 5000))
    assert len(load_released(str(tmp_path), "qa1", "0k")) == 1
    for text in (json.dumps(row | {"target": "\ud800"}), json.dumps(row | {"question": 5}), "[" * 100_000):
        path.write_text(text)
        with pytest.raises(DataError, match=r"0k\.jsonl"):
            load_released(str(tmp_path), "qa1", "0k")


def test_prompts_are_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("a\u2028b", encoding="utf-8")
    assert read_prompt("", str(path)) == "a\u2028b" and read_prompt("\u00e9", None) == "\u00e9"
    path.write_bytes(b"caf\xe9")
    for text, file in (("\udcff", None), ("", str(path)), ("", str(tmp_path))):
        with pytest.raises(ConfigError, match=r"--prompt.* cannot be read as UTF-8 text"):
            read_prompt(text, file)
