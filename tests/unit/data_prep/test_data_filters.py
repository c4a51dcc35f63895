"""Filters and near duplicates: what is left out is what the configuration says, counted by reason."""

import json
import random
from pathlib import Path

import pytest
from rich.console import Console

from data_prep import Manifest, PrepareConfig, load_tokenizer, prepare
from data_prep.config import FilterConfig
from data_prep.shards.reading import Shard
from data_prep.sources.filters import alphabetic_share, mean_word_length, rejected_by, repeated_line_share

QUIET = Console(quiet=True)


@pytest.mark.parametrize(
    ("text", "settings", "reason"),
    [
        ("short", {"min_characters": 6}, "min_characters"),
        ("short", {"min_characters": 5}, None),
        ("long text", {"max_characters": 8}, "max_characters"),
        ("1234 ab", {"min_alphabetic_share": 0.5}, "min_alphabetic_share"),
        ("ab 12", {"min_alphabetic_share": 0.5}, None),
        ("a\nb\na\n\na\n", {"max_repeated_line_share": 0.4}, "max_repeated_line_share"),
        ("a\nb\na\n\na\n", {"max_repeated_line_share": 0.5}, None),
        ("a bb", {"min_mean_word_length": 2}, "min_mean_word_length"),
        ("aaaaaaaaaaaaaaaaaaaa", {"max_mean_word_length": 12}, "max_mean_word_length"),
        ("anything ???", {}, None),
    ],
)
def test_filters(text: str, settings: dict[str, float], reason: str | None) -> None:
    assert rejected_by(text, FilterConfig.model_validate(settings)) == reason


def test_shares_of_nothing() -> None:
    assert (alphabetic_share(" "), repeated_line_share("\n"), mean_word_length("")) == (0, 0, 0)
    assert alphabetic_share("日本 1") == pytest.approx(2 / 3)


def prepared(folder: Path, texts: list[list[str]], **settings: object) -> tuple[Manifest, list[str]]:
    (folder / "in").mkdir()
    for number, mine in enumerate(texts):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in mine)
        (folder / "in" / f"{number}.jsonl").write_text(lines)
    base = {
        "sources": [{"kind": "jsonl", "path": str(folder / "in"), "name": "web"}],
        "tokenizer": {"vocab_size": 300},
        "valid_fraction": 0,
        "workers": 1,
        "task_bytes": 1,
    }
    manifest = prepare(PrepareConfig.model_validate(base | settings), folder / "data", QUIET)
    model = load_tokenizer(folder / "data" / manifest.tokenizer.file)
    found = []
    for entry in manifest.shards:
        shard = Shard(folder / "data", entry, manifest.token_type)
        for start, end in zip(shard.offsets, shard.offsets[1:], strict=False):
            found.append(model.decode(shard.tokens[start:end].tolist()[1:-1]))
    return manifest, found


def passages(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 8))) for _ in range(400)]
    return [" ".join(rng.choices(words, k=120)) for _ in range(count)]


def test_filtered_documents_are_counted(tmp_path: Path) -> None:
    good = passages(20, 0)
    manifest, found = prepared(tmp_path, [[*good, "12345", "x"]], filters={"min_characters": 10})
    assert found == good
    assert manifest.skipped["web"].filtered == 2


def test_exact_duplicates_between_tasks_go_and_the_first_stays(tmp_path: Path) -> None:
    one, two = passages(20, 0), passages(10, 1)
    manifest, found = prepared(tmp_path, [[*one, one[3]], [*two, *one[:5], two[0]], one[:20]])
    assert found == [*one, *two]
    assert manifest.skipped["web"].duplicates == 1 + 6 + 20


def test_duplicates_stay_where_nobody_wants_them_gone(tmp_path: Path) -> None:
    one = passages(5, 0)
    manifest, found = prepared(tmp_path, [[*one, one[3]], one], dedup={"kind": "none"})
    assert found == [*one, one[3], *one]
    assert manifest.skipped["web"].duplicates == 0


def test_near_duplicates_go(tmp_path: Path) -> None:
    pytest.importorskip("datasketch")
    one, rng = passages(15, 0), random.Random(2)
    near = []
    for text in one[:10]:
        words = text.split()
        words[rng.randrange(len(words))] = "changed"
        near.append(" ".join(words))
    other = passages(15, 5)
    manifest, found = prepared(tmp_path, [one, [*near, *other], [one[12]]], dedup={"kind": "minhash"})
    assert found == [*one, *other]
    assert manifest.skipped["web"].near_duplicates == 10
    assert manifest.skipped["web"].duplicates == 1
