"""Memories for evaluation: what is found and read, from a bank or written at once; answers and how they are scored."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from data_prep import DataConfig, DataError, ReferenceStore, prepare
from data_prep.bank import Bank, BankWriter, merge_bank
from data_prep.bank.layout import DType
from data_prep.references.prepare import prepare_references
from data_prep.references.retrieval import open_retriever
from evaluation.memories import MemorySource, as_stored, as_tensor, open_source, write_memories
from evaluation.memory_perplexity import losses, perplexity_rows
from evaluation.questions import ask, contains, evaluate_questions, exact, load_questions, normalised
from model import LanguageModel, ModelConfig, ModelError, build_model
from model.config import ExplicitConfig
from model.explicit.references import memory_shape
from model.fingerprint import weights_fingerprint
from tests.reference.small import one_thread as one_thread

pytestmark = pytest.mark.memory3
TOWNS = ["Arvik", "Bolden", "Carmo", "Dunhill", "Estra", "Farlow", "Gorsk", "Hamley"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """References about towns, and questions about them."""
    root = tmp_path_factory.mktemp("questions")
    passages = [f"The mayor of {town} is called {town[::-1].title()}. {town} has {n} bridges." for n, town in
                enumerate(TOWNS)]  # fmt: skip
    (root / "texts").mkdir()
    for town, passage in zip(TOWNS, passages, strict=True):
        (root / "texts" / f"{town}.txt").write_text(passage)
    records = [
        {"question": f"who is the mayor of {town}", "answers": [town[::-1].title()], "passage": passage}
        for town, passage in zip(TOWNS, passages, strict=True)
    ]
    (root / "questions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    source = {"kind": "text", "path": str(root / "texts")}
    tokenizer = {"vocab_size": 400, "train_bytes": 100_000}
    settings = {"path": str(root / "data"), "sequence_length": 64}
    settings["prepare"] = {"sources": [source], "tokenizer": tokenizer, "valid_fraction": 0, "workers": 1}
    settings["references"] = {"path": str(root / "refs"), "prepare": {"sources": [source], "workers": 1}}
    config = DataConfig.model_validate(settings)
    assert config.prepare is not None
    prepare(config.prepare, config.path, Console(quiet=True))
    prepare_references(config, Console(quiet=True))
    return root


def net_of(seed: int = 0, **changes: object) -> LanguageModel:
    shape: dict[str, Any] = {
        "vocab_size": 400,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_size": 48,
    }
    shape["explicit"] = ExplicitConfig(bos=(1, 5), tokens=4, references=2)
    config = ModelConfig(segment_length=64, init_std=0.2, **shape | changes)
    return build_model(config, seed=seed).eval()


def write_bank(net: LanguageModel, store: ReferenceStore, folder: Path, ids: range, dtype: DType = "float32") -> Path:
    shape, numbers = memory_shape(net.config), np.array(ids)
    with BankWriter(folder, shape, dtype, weights_fingerprint(net), store.fingerprint) as writer:
        writer.write(numbers, as_stored(write_memories(net, *store.read(numbers)), dtype))
    merge_bank(folder)
    return folder


def fingerprint(folder: Path) -> str:
    return ReferenceStore(folder / "refs").manifest.tokenizer.fingerprint


def test_a_bank_gives_what_the_model_writes(folder: Path, tmp_path: Path) -> None:
    net, store = net_of(), ReferenceStore(folder / "refs")
    bank = write_bank(net, store, tmp_path, range(len(store)))
    queries = [store.tokenizer().encode(f"the mayor of {town}") for town in TOWNS[:3]] + [[]]
    direct = open_source(net, folder / "refs", None, fingerprint(folder))
    stored = open_source(net, folder / "refs", bank, fingerprint(folder))
    stored.prefetch(queries)
    (expected, lengths), (found, found_lengths) = direct.find(queries), stored.find(queries)
    assert expected.shape == (4, 2, *memory_shape(net.config))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(found_lengths, lengths)
    assert (lengths[:3, 0] > 0).all()
    assert (lengths[3] == 0).all()
    for town, texts in zip(TOWNS, stored.texts(queries)[:3], strict=False):
        assert town in texts[0]
    stored.close()


def test_a_cold_bank_fills_as_it_is_read(folder: Path, tmp_path: Path) -> None:
    net, store = net_of(), ReferenceStore(folder / "refs")
    write_bank(net, store, tmp_path, range(1))
    queries = [store.tokenizer().encode(f"the mayor of {town}") for town in TOWNS]
    source = open_source(net, folder / "refs", tmp_path, fingerprint(folder), cold=True)
    memories, _ = source.find(queries)
    source.close()
    with Bank(tmp_path, weights_fingerprint(net)) as bank:
        assert len(bank) > 6
        ids = np.array(sorted(set(source.ids(queries).reshape(-1).tolist()) - {-1}))
        expected: Any = as_stored(write_memories(net, *store.read(ids)), "float32")
        np.testing.assert_allclose(bank.read(ids), expected, atol=1e-6)
    del memories


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_memories_become_what_a_bank_stores(dtype: str) -> None:
    memories = torch.randn(2, 3, 4)
    kept = as_tensor(as_stored(memories, dtype))
    assert torch.equal(kept, memories.to(getattr(torch, dtype)))


def test_the_fingerprint_is_of_the_weights() -> None:
    one, same, other = (weights_fingerprint(net_of(seed)) for seed in (0, 0, 1))
    assert one == same != other
    changed = net_of()
    with torch.no_grad():
        next(iter(changed.parameters()))[3, 4] += 1e-6
    assert weights_fingerprint(changed) != one


def test_what_does_not_belong_together_is_refused(folder: Path, tmp_path: Path) -> None:
    store = ReferenceStore(folder / "refs")
    bank = write_bank(net_of(), store, tmp_path, range(2))
    with pytest.raises(DataError, match="whose weights cannot read its keys and values"):
        open_source(net_of(1), folder / "refs", bank, fingerprint(folder))
    with pytest.raises(DataError, match="was made with tokenizer"):
        open_source(net_of(), folder / "refs", bank, "other")
    short = net_of(explicit=ExplicitConfig(bos=(1, 5), tokens=4, reference_length=16))
    with pytest.raises(DataError, match="references of up to 128 tokens, the model reads 16"):
        open_source(short, folder / "refs", None, fingerprint(folder))
    with pytest.raises(ModelError, match="has no explicit memory"):
        MemorySource(net_of(explicit=None), store, open_retriever(store))


def test_a_reference_that_stands_in_the_question_is_not_read(folder: Path) -> None:
    net, store = net_of(), ReferenceStore(folder / "refs")
    whole = store.tokenizer().encode((folder / "texts" / "Gorsk.txt").read_text())
    strict = MemorySource(net, store, open_retriever(store))
    lax = MemorySource(net, store, open_retriever(store), max_overlap=1.0)
    assert "Gorsk" in lax.texts([whole])[0][0]
    assert not any("Gorsk" in text for text in strict.texts([whole])[0])


def test_perplexity_with_memory_equals_one_call_and_differs_from_without(folder: Path) -> None:
    net, store = net_of(), ReferenceStore(folder / "refs")
    tokenizer = store.tokenizer()
    ids = [tokenizer.bos_id, *tokenizer.encode(" ".join((folder / "texts" / f"{t}.txt").read_text() for t in TOWNS))]
    texts = [ids[:110], ids[20:130]]
    source = open_source(net, folder / "refs", None, fingerprint(folder))
    without, read = losses(net, texts, None), losses(net, texts, source)
    tokens = torch.tensor(texts)
    with torch.no_grad():
        logits = net(tokens[:, :-1]).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum")
    assert without == (pytest.approx(float(expected), rel=1e-5), 2 * 109)
    assert abs(read[0] - without[0]) > 2e-3 * without[0]
    rows = perplexity_rows(net, texts, source)
    assert [row.task for row in rows] == ["perplexity/without memory", "perplexity/explicit memory"]
    assert rows[1].value == pytest.approx(read[0] / read[1])


def test_the_three_modes(folder: Path) -> None:
    net, questions = net_of(), load_questions(folder / "questions.jsonl")
    source = open_source(net, folder / "refs", None, fingerprint(folder))
    tokenizer = ReferenceStore(folder / "refs").tokenizer()
    rows, answered = evaluate_questions(net, tokenizer, questions, source, max_tokens=4, batch_size=3)
    assert [(row.task, row.scorer) for row in rows] == [
        (f"nq/{mode}", scorer)
        for mode in ("closed book", "text in prompt", "explicit memory")
        for scorer in ("exact", "contains")
    ]
    assert all(row.samples == len(TOWNS) and 0 <= row.low <= row.accuracy <= row.high <= 1 for row in rows)
    said = {mode: [each.said for each in answered if each.mode == mode] for mode in {each.mode for each in answered}}
    assert said["closed book"] != said["explicit memory"]  # what is read matters
    alone = ask(net, tokenizer, questions, "explicit memory", source, max_tokens=4, batch_size=1)
    assert [each.said for each in alone] == said["explicit memory"]  # not what it was batched with
    with pytest.raises(DataError, match="needs references"):
        ask(net, tokenizer, questions, "explicit memory")


@pytest.mark.parametrize(
    ("said", "is_exact", "is_contained"),
    [
        ("The Eagles.", True, True),
        ("eagles\nAnd more", True, True),
        ("It was sung by the Eagles, in 1975", False, True),
        ("Beagles", False, False),
        ("", False, False),
    ],
)
def test_scorers(said: str, is_exact: bool, is_contained: bool) -> None:
    right = ["the Eagles", "American band Eagles"]
    assert (exact(said, right), contains(said, right)) == (is_exact, is_contained)


def test_normalised() -> None:
    assert normalised("  The “U.S.A.”, an\tExample!") == "usa example"
    assert not contains("anything", ["the", "?"])  # nothing is left of these answers


def test_questions_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 0"):
        load_questions(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answers": ["a"], "passage": "p"}\n{"question": 1}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: question is 1, it must be a text"):
        load_questions(tmp_path)
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match="has no question"):
        load_questions(tmp_path)


def test_the_real_questions() -> None:
    import os

    data = os.environ.get("MEMTRAIN_DATA")
    if not data or not (Path(data) / "nq_oracle").is_dir():
        pytest.skip("needs MEMTRAIN_DATA with nq_oracle/")
    questions = load_questions(Path(data) / "nq_oracle")
    assert len(questions) == 1655
    answerable = [contains(question.passage, question.answers) for question in questions]
    assert np.mean(answerable) > 0.9  # the passages hold the answers


def write_question(folder: Path, line: str) -> Path:
    (folder / "q.jsonl").write_text(line, encoding="utf-8")
    return folder / "q.jsonl"


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ('{"question": "Who?", "answers": {"text": ["Ann Lee"], "answer_start": [3]}, "passage": "x"}', ("Ann Lee",)),
        ('{"question": "Who?", "answers": {"text": ["Ann", "Ann"], "answer_start": [3, 9]}, "context": "x"}',
         ("Ann", "Ann")),
        ('{"question": "Who?", "answers": {"text": "Ann Lee"}, "passage": "x", "title": null}', ("Ann Lee",)),
        ('{"question": "Who?", "answers": "Ann Lee", "passage": "x"}', ("Ann Lee",)),
        ('{"question": "Who?", "answers": ["Ann", "Lee"], "passage": "x", "id": ' + "9" * 5000 + "}", ("Ann", "Lee")),
    ],
)  # fmt: skip
def test_answers_in_every_form_are_whole_answers(tmp_path: Path, line: str, answers: tuple[str, ...]) -> None:
    (found,) = load_questions(write_question(tmp_path, line))
    assert (found.question, found.answers, found.passage, found.title) == ("Who?", answers, "x", "")


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_signs_that_are_no_ends_of_lines(tmp_path: Path, sign: str) -> None:
    record = {"question": f"Who{sign}?", "answers": ["Ann"], "passage": f"It{sign}was Ann."}
    line = json.dumps(record, ensure_ascii=False)
    found = load_questions(write_question(tmp_path, f"\ufeff{line}\r\n\n{line}"))
    assert [(q.question, q.passage) for q in found] == [(f"Who{sign}?", f"It{sign}was Ann.")] * 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"question": 5}, "question is 5, it must be a text"),
        ({"passage": None}, "passage is None, it must be a text"),
        ({"question": "\ud800"}, "question is "),
        ({"answers": []}, r"answers are \[\], they must be texts, at least one"),
        ({"answers": {"text": [], "answer_start": []}}, "at least one"),
        ({"answers": ["Ann", 1901]}, "they must be texts"),
        ({"answers": [["Ann"]]}, "they must be texts"),
        ({"answers": {"Ann": 1}}, "they must be texts"),
        ({"answers": None}, "answers are None"),
    ],
)
def test_questions_that_cannot_be_scored_name_line_and_key(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    right = {"question": "Who?", "answers": ["Ann"], "passage": "x"}
    lines = json.dumps(right) + "\n" + json.dumps(right | changes) + "\n"
    with pytest.raises(DataError, match=rf"q\.jsonl:2: .*{said}"):
        load_questions(write_question(tmp_path, lines))


@pytest.mark.parametrize("line", ["[1]", "5", "{", "[" * 100_000])
def test_lines_that_are_no_question(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"q\.jsonl:1: is (not JSON|a JSON)"):
        load_questions(write_question(tmp_path, line))


def test_the_one_file_of_questions_of_a_folder(tmp_path: Path) -> None:
    write_question(tmp_path, '{"question": "Who?", "answers": "Ann", "passage": "x"}').rename(tmp_path / "Q.JSONL")
    (tmp_path / ".q.jsonl").write_text("an editor's copy")
    assert len(load_questions(tmp_path)) == 1
