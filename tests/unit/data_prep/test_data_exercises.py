"""Exercises: only answers are learned, no sample cuts a document, lengths go into sources of their own."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from data_prep import DataConfig, DataError, Manifest, PrepareConfig, TokenStream, load_tokenizer, prepare
from data_prep.stream.packing import pack
from data_prep.tokenizers.tokenizer import train_sentencepiece

QUIET = Console(quiet=True)
PLACES = ["garden", "kitchen", "office", "hallway"]
LENGTH = 256


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exercises") / "tokenizer.model"
    train_sentencepiece(["Mary went to the garden kitchen office hallway. Where is Mary? John, too"] * 50, 300, path)
    return path


def write_exercises(path: Path, count: int = 200) -> list[dict[str, str]]:
    rng = random.Random(0)
    records = []
    for number in range(count):
        place = rng.choice(PLACES)
        context = " ".join(f"Mary went to the {p}." for p in [*rng.choices(PLACES, k=rng.randint(0, 6)), place])
        records.append({"context": f"{context} {number} {{question}}", "question": "Where is Mary?", "answer": place})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def config_of(path: Path, tokenizer: Path, **changes: object) -> PrepareConfig:
    source = {"kind": "task", "path": str(path), "name": "babi"} | changes
    settings = {"sources": [source], "tokenizer": {"path": str(tokenizer)}, "valid_fraction": 0, "workers": 1}
    return PrepareConfig.model_validate(settings)


def test_every_answer_is_learned_once_an_epoch_and_nothing_else(tokenizer: Path, tmp_path: Path) -> None:
    records = write_exercises(tmp_path / "a.jsonl")
    prepare(config_of(tmp_path / "a.jsonl", tokenizer, pack_length=LENGTH), tmp_path / "data", QUIET)
    stream = TokenStream(tmp_path / "data", sequence_length=LENGTH, seed=0)
    model = load_tokenizer(tokenizer)
    batch = stream.batch(range(len(stream)))
    answers, prompts = [], 0
    for tokens, ids, mask in zip(batch.tokens, batch.document_ids, batch.loss_mask, strict=True):
        assert tokens[0] == model.bos_id  # a sample begins with a document
        for number in range(ids.max() + 1):
            where = np.flatnonzero(ids == number)
            learned = where[1:][mask[where[1:] - 1]]  # the labels, at their own places
            if len(learned):
                assert learned[-1] == where[-1]
                assert tokens[learned[-1]] == model.eos_id
                answers.append(model.decode(tokens[learned[:-1]].tolist()))
                prompts += model.decode(tokens[where[1] : learned[0]].tolist()).endswith("\nWhere is Mary?\n")
    assert sorted(answers) == sorted(record["answer"] for record in records)
    assert prompts == len(records)


def test_prompt_stands_whole_before_its_answer(tokenizer: Path, tmp_path: Path) -> None:
    records = write_exercises(tmp_path / "a.jsonl", 30)
    config = config_of(tmp_path / "a.jsonl", tokenizer, pack_length=LENGTH, prompt="Q: {question} C: {context} A: ")
    prepare(config, tmp_path / "data", QUIET)
    stream, model = TokenStream(tmp_path / "data", sequence_length=LENGTH, seed=0), load_tokenizer(tokenizer)
    batch = stream.batch(range(len(stream)))
    found = set()
    for tokens, ids in zip(batch.tokens, batch.document_ids, strict=True):
        for number in range(ids.max() + 1):
            found.add(model.decode([t for t in tokens[ids == number].tolist() if t not in (1, 2)]))
    # The braces of a context are text, not places to fill in.
    expected = {f"Q: {r['question']} C: {r['context']} A: {r['answer']}" for r in records}
    assert expected <= found


def test_all_answers_of_an_exercise_are_learned_and_nothing_between(tokenizer: Path, tmp_path: Path) -> None:
    turns = [
        {"context": "Mary went to the garden.", "question": "Where is Mary?", "answer": "garden"},
        {"context": " John went to the office. Mary went to the hallway.", "question": "Where?", "answer": "hallway"},
        {"context": "", "question": "Where is John?", "answer": "office"},
    ]
    (tmp_path / "a.jsonl").write_text(json.dumps({"turns": turns}) + "\n")
    prepare(config_of(tmp_path / "a.jsonl", tokenizer, pack_length=LENGTH), tmp_path / "data", QUIET)
    batch = TokenStream(tmp_path / "data", sequence_length=LENGTH, seed=0).batch([0])
    tokens, mask = batch.tokens[0], np.concatenate([[False], batch.loss_mask[0]])
    model = load_tokenizer(tokenizer)
    ends = np.flatnonzero((tokens == model.eos_id) & mask)
    begins = [1, *(ends + 1)]
    parts = [model.decode(tokens[a:b].tolist()) for a, b in zip(begins, ends, strict=False)]
    assert parts == [f"{turn['context']}\n{turn['question']}\n{turn['answer']}" for turn in turns]
    learned = [model.decode(tokens[a:b][mask[a:b]].tolist()) for a, b in zip(begins, ends, strict=False)]
    assert learned == [turn["answer"] for turn in turns]
    assert (batch.document_ids[0][: ends[-1] + 1] == 0).all()  # one document
    assert not mask[ends[-1] + 1 :].any()


def test_unpacked_exercises_carry_their_mask(tokenizer: Path, tmp_path: Path) -> None:
    write_exercises(tmp_path / "a.jsonl")
    prepare(config_of(tmp_path / "a.jsonl", tokenizer), tmp_path / "data", QUIET)
    stream = TokenStream(tmp_path / "data", sequence_length=32, seed=0)
    batch = stream.batch(range(len(stream)))
    assert 0.02 < batch.loss_mask.mean() < 0.4


def test_lengths_have_sources_of_their_own(tokenizer: Path, tmp_path: Path) -> None:
    write_exercises(tmp_path / "a.jsonl")
    config = config_of(tmp_path / "a.jsonl", tokenizer, pack_length=LENGTH, length_bins=[80, 140, LENGTH])
    manifest = prepare(config, tmp_path / "data", QUIET)
    assert {entry.source for entry in manifest.shards} == {"babi-80", "babi-140", "babi-256"}
    curriculum = [(0, {"babi-80": 1.0}), (5, {"babi-140": 1.0, "babi-256": 1.0})]
    stream = TokenStream(tmp_path / "data", sequence_length=LENGTH, seed=0, mix=curriculum)
    assert {stream.describe(g).source for g in range(5)} == {"babi-80"}
    assert {stream.describe(g).source for g in range(5, 20)} == {"babi-140", "babi-256"}
    short = stream.batch(range(5))
    assert all(np.bincount(ids).max() <= LENGTH for ids in short.document_ids)


def test_exercise_that_does_not_fit_is_named(tokenizer: Path, tmp_path: Path) -> None:
    write_exercises(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl:\d+: is \d+ tokens long, pack_length is 64"):
        prepare(config_of(tmp_path / "a.jsonl", tokenizer, pack_length=64), tmp_path / "data", QUIET)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"context": "a", "question": "b"}', r"a\.jsonl:1: object has no key 'answer'"),
        ('{"context": "a", "question": "b", "answer": " "}', r"a\.jsonl:1: 'answer' is empty"),
        ('{"context": "a", "question": 3, "answer": "c"}', r"a\.jsonl:1: 'question' is a int"),
        ('{"turns": {"context": "a"}}', r"a\.jsonl:1: 'turns' is not a list of objects"),
        ('{"turns": []}', r"a\.jsonl:1: 'turns' is not a list of objects"),
        (
            '{"turns": [{"context": "a", "question": "b", "answer": "c"}, {"context": "a", "question": "b"}]}',
            r"a\.jsonl:1, turn 2: object has no key 'answer'",
        ),
    ],
)
def test_bad_exercise_is_named(tokenizer: Path, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        prepare(config_of(tmp_path / "a.jsonl", tokenizer), tmp_path / "data", QUIET)


def test_the_same_exercise_in_two_tasks_is_learned_once(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    records = write_exercises(tmp_path / "in" / "a.jsonl")
    (tmp_path / "in" / "b.jsonl").write_bytes((tmp_path / "in" / "a.jsonl").read_bytes())
    config = config_of(tmp_path / "in", tokenizer, pack_length=LENGTH).model_copy(update={"task_bytes": 1})
    manifest = prepare(config, tmp_path / "data", QUIET)
    assert manifest.skipped["babi"].duplicates == len(records)
    stream = TokenStream(tmp_path / "data", sequence_length=LENGTH, seed=0)
    ends = (stream.batch(range(len(stream))).tokens[:, 1:] == 2) & stream.batch(range(len(stream))).loss_mask
    assert ends.sum() == len(records)


def test_pack_length_is_the_sample(tokenizer: Path) -> None:
    with pytest.raises(ValueError, match="pack_length of 'babi' is 64, but sequence_length is 128"):
        DataConfig(path=Path("x"), sequence_length=128, prepare=config_of(Path("y"), tokenizer, pack_length=64))
    with pytest.raises(ValueError, match=r"must contain \{context\} and \{question\}"):
        config_of(Path("y"), tokenizer, prompt="{context}")
    with pytest.raises(ValueError, match="that increase"):
        config_of(Path("y"), tokenizer, length_bins=[4, 4])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lengths=st.lists(st.integers(1, 50), max_size=60), capacity=st.integers(50, 80))
def test_packing_loses_nothing_and_overfills_no_row(lengths: list[int], capacity: int) -> None:
    rows = pack(lengths, capacity)
    assert sorted(member for row in rows for member in row) == list(range(len(lengths)))
    totals = [sum(lengths[member] for member in row) for row in rows]
    assert all(total <= capacity for total in totals)
    assert sum(total <= capacity / 2 for total in totals) <= 1  # first-fit: two half-empty rows would be one


def test_manifest_of_packed_rows_is_whole_windows(tokenizer: Path, tmp_path: Path) -> None:
    write_exercises(tmp_path / "a.jsonl")
    config = config_of(tmp_path / "a.jsonl", tokenizer, pack_length=LENGTH).model_copy(update={"shard_bytes": 4096})
    prepare(config, tmp_path / "data", QUIET)
    entries = Manifest.load(tmp_path / "data").shards
    assert len(entries) > 2
    assert all(entry.tokens % LENGTH == 1 for entry in entries)
