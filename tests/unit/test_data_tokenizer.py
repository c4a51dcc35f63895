"""Tokenizers: nothing is lost on the way to ids and back; models are reproducible; bad ones are named."""

import sysconfig
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep import DataError, Tokenizer, load_tokenizer
from data_prep.tokenizer import train_sentencepiece

TEXTS = [(Path(sysconfig.get_paths()["stdlib"]) / name).read_text() for name in ("ast.py", "os.py", "json/decoder.py")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_sentencepiece(TEXTS, 600, path)
    return load_tokenizer(path)


def write_hf(path: Path, specials: list[str]) -> Path:
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(TEXTS, trainer)
    model.save(str(path))
    return path


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return load_tokenizer(write_hf(path, ["<|begin_of_text|>", "<|end_of_text|>"]))


@given(text=st.text())
@example(text="\tdef f():\r\n        return  1\n\n\n")
@example(text="  leading and trailing  ")
@example(text="\u2581 a real \u2581\u2581 mark, \0 and \ufeff and \u3000")
@example(text="<s></s><unk><0x0A>\u2028\U0001f600 e\u0301")
def test_sentencepiece_round_trip(trained: Tokenizer, text: str) -> None:
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert not {trained.bos_id, trained.eos_id} & set(ids)


@given(text=st.text())
@example(text="a<|end_of_text|>b<|begin_of_text|>")
def test_hf_round_trip(hf: Tokenizer, text: str) -> None:
    ids = hf.encode(text)
    assert hf.decode(ids) == text
    assert not {hf.bos_id, hf.eos_id} & set(ids)


def test_training_is_reproducible_and_changes_with_the_text(trained: Tokenizer, tmp_path: Path) -> None:
    train_sentencepiece(iter(TEXTS), 600, tmp_path / "same.model")
    train_sentencepiece(TEXTS[:1], 600, tmp_path / "other.model")
    assert load_tokenizer(tmp_path / "same.model").fingerprint == trained.fingerprint
    assert load_tokenizer(tmp_path / "other.model").fingerprint != trained.fingerprint


def test_what_the_trained_vocabulary_holds(trained: Tokenizer) -> None:
    pieces = [trained.piece(id) for id in range(trained.vocab_size)]
    assert len(pieces) == 600
    assert {"\n", "\t", "\u2581" * 4, "<0x00>", "<0xFF>"} <= set(pieces)
    assert (trained.piece(trained.bos_id), trained.piece(trained.eos_id)) == ("<s>", "</s>")
    assert len(trained.encode("        return self")) < 6  # runs of spaces and words are learned


def test_hf_specials_are_found(hf: Tokenizer) -> None:
    assert (hf.piece(hf.bos_id), hf.piece(hf.eos_id)) == ("<|begin_of_text|>", "<|end_of_text|>")
    assert hf.vocab_size == 400


@pytest.mark.parametrize(("texts", "vocab_size"), [(["too little text"], 5000), (TEXTS, 270), ([], 300)])
def test_a_corpus_that_cannot_fill_the_vocabulary(texts: list[str], vocab_size: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"tokenizer.vocab_size is {vocab_size}.*change vocab_size"):
        train_sentencepiece(texts, vocab_size, tmp_path / "tokenizer.model")
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    for name in ("bad.model", "bad.json", "bad.bin"):
        (tmp_path / name).write_bytes(b"{}")
        with pytest.raises(DataError, match=name):
            load_tokenizer(tmp_path / name)
    with pytest.raises(DataError, match=r"absent\.model.*check tokenizer\.path"):
        load_tokenizer(tmp_path / "absent.model")
    with pytest.raises(DataError, match=r"no bos and eos"):
        load_tokenizer(write_hf(tmp_path / "tokenizer.json", ["<pad>"]))
