"""Tokenizers: nothing is lost on the way to ids and back; models are reproducible; bad ones are named."""

import json
import re
import sysconfig
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep import DataError, Tokenizer, load_tokenizer
from data_prep.tokenizers.tokenizer import train_sentencepiece

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


def test_the_size_that_is_named_is_one_that_works(tmp_path: Path) -> None:
    text = "abc def ghi jkl é ü ö ß " * 30
    for vocab_size, words in (
        (262, r"too few for the bytes .* to (\d+) or more"),
        (5000, r"more than .* to (\d+) or less"),
    ):
        with pytest.raises(DataError, match=words) as error:
            train_sentencepiece([text], vocab_size, tmp_path / "tokenizer.model")
        assert "--character_coverage" not in str(error.value)  # an option of another program
        match = re.search(words, str(error.value))
        assert match is not None
        train_sentencepiece([text], int(match[1]), tmp_path / "tokenizer.model")
        assert load_tokenizer(tmp_path / "tokenizer.model").vocab_size == int(match[1])


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    for name in ("bad.model", "bad.json", "bad.bin"):
        (tmp_path / name).write_bytes(b"{}")
        with pytest.raises(DataError, match=name):
            load_tokenizer(tmp_path / name)
    with pytest.raises(DataError, match=r"absent\.model.*check tokenizer\.path"):
        load_tokenizer(tmp_path / "absent.model")
    with pytest.raises(DataError, match=r"no known pair of bos and eos"):
        load_tokenizer(write_hf(tmp_path / "tokenizer.json", ["<pad>"]))


def add_tokens(path: Path, tokens: list[str], special: bool) -> Path:
    made = tokenizers.Tokenizer.from_file(str(path))
    made.add_tokens([tokenizers.AddedToken(token, special=special) for token in tokens])
    made.save(str(path))
    return path


def test_ordinary_added_tokens_are_neither_bos_nor_eos(tmp_path: Path) -> None:
    """A vocabulary for HTML, say: `<s>` is a tag of it, `<|endoftext|>` delimits documents."""
    path = add_tokens(write_hf(tmp_path / "tokenizer.json", ["<|endoftext|>"]), ["<s>", "</s>"], special=False)
    found = load_tokenizer(path)
    assert (found.piece(found.bos_id), found.piece(found.eos_id)) == ("<|endoftext|>", "<|endoftext|>")
    ids = found.encode("a <s>word</s> of html")
    assert found.decode(ids) == "a <s>word</s> of html" and "<s>" in map(found.piece, ids)
    assert not {found.bos_id, found.eos_id} & set(ids)


@pytest.mark.parametrize("tokens", [["<s>", "</s>"], ["<bos>", "<eos>"], ["<|begin_of_text|>", "<|end_of_text|>"]])
def test_only_ordinary_tokens_to_delimit_with(tokens: list[str], tmp_path: Path) -> None:
    path = add_tokens(write_hf(tmp_path / "tokenizer.json", ["<pad>"]), tokens, special=False)
    with pytest.raises(DataError, match=r"ordinary tokens, which a text may have.*\"special\": true"):
        load_tokenizer(path)


def test_vocabularies_that_make_control_tokens_of_text(tmp_path: Path) -> None:
    unigram = tokenizers.Tokenizer(
        tokenizers.models.Unigram([("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((c, -9.0) for c in "<s>/ab ")], 0)
    )
    unigram.add_special_tokens(["<unk>", "<s>", "</s>"])
    unigram.save(str(tmp_path / "unigram.json"))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="<|endoftext|>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.add_special_tokens(["<|endoftext|>"])
    words.save(str(tmp_path / "words.json"))
    for name in ("unigram", "words"):
        with pytest.raises(DataError, match=rf"{name}\.json: the text .* becomes the special token"):
            load_tokenizer(tmp_path / f"{name}.json")
    none = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="absent"))
    none.add_special_tokens(["<s>", "</s>"])
    none.save(str(tmp_path / "none.json"))
    with pytest.raises(DataError, match=r"none\.json: has no ids for the text"):
        load_tokenizer(tmp_path / "none.json")


def test_ids_without_a_piece(trained: Tokenizer, hf: Tokenizer) -> None:
    """A model's vocabulary is often padded: it can name ids that the tokenizer does not have."""
    for tokenizer in (trained, hf):
        ids = tokenizer.encode("some text")
        beyond = tokenizer.vocab_size + 7
        assert tokenizer.decode([*ids, beyond, *ids]) == "some text\ufffdsome text"
        assert tokenizer.decode([beyond, beyond]) == "\ufffd\ufffd" and tokenizer.decode([]) == ""
        assert tokenizer.piece(beyond) == "\ufffd" == tokenizer.piece(-1)


def test_a_hole_in_a_vocabulary_has_no_piece(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "tokenizer.json", ["<s>", "</s>"])
    content = json.loads(path.read_text())
    content["model"]["vocab"] = {piece: id + 5 * (id > 300) for piece, id in content["model"]["vocab"].items()}
    path.write_text(json.dumps(content))
    found = load_tokenizer(path)
    assert (found.vocab_size, found.piece(303), found.decode([303])) == (405, "\ufffd", "\ufffd")


@pytest.mark.parametrize("prefix", ["longer than a piece", "w", "\u00e9"])
def test_a_file_over_which_the_library_panics_or_aborts(tmp_path: Path, prefix: str) -> None:
    path = write_hf(tmp_path / "tokenizer.json", ["<s>", "</s>"])
    content = json.loads(path.read_text())
    content["model"]["continuing_subword_prefix"] = prefix
    path.write_text(json.dumps(content, ensure_ascii=False))
    with pytest.raises(DataError, match=r"tokenizer\.json: model\.merges: .* does not begin with"):
        load_tokenizer(path)
