"""Transformers' AutoTokenizer on what we write: the same ids and the same text as our tokenizer."""

import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_prep import Tokenizer
from data_prep.errors import DataError
from data_prep.hf_tokenizer import write_hf_tokenizer
from data_prep.tokenizer import load_tokenizer, train_sentencepiece

CORPUS = [Path(__file__).read_text(encoding="utf-8"), "na\u00efve caf\u00e9 1234 \t\t  \n\n    x = y[i]\n" * 40]


@pytest.fixture(scope="module", params=["sentencepiece", "hf"])
def both(request, tmp_path_factory):
    """Our tokenizer, and Transformers' from the folder that was written for it."""
    folder, kind = tmp_path_factory.mktemp("tokenizer"), request.param
    own = folder / ("own.model" if kind == "sentencepiece" else "own.json")
    if kind == "sentencepiece":
        train_sentencepiece(CORPUS, 400, own)
    else:
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        )
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        made.train_from_iterator(CORPUS, trainer)
        made.save(str(own))
    tokenizer = load_tokenizer(own)
    write_hf_tokenizer(tokenizer, folder)
    return tokenizer, AutoTokenizer.from_pretrained(folder)


def assert_same(both: tuple[Tokenizer, object], text: str) -> None:
    ours, theirs = both
    ids = ours.encode(text)
    assert theirs(text, add_special_tokens=False).input_ids == ids
    assert theirs.decode(ids) == ours.decode(ids)


TEXTS = [
    "",
    " ",
    "  a  b ",
    "\n\n\t x\t",
    "<s> </s> <unk> <0x0A>",
    "<|end_of_text|>",
    "\u2581 \u2581\u2581x",
    "\U0001f642\u65e5",
    "a" * 40,
]


@pytest.mark.parametrize("text", [*TEXTS, *CORPUS, " " * 33])
def test_the_ids_are_the_same(both, text):
    assert_same(both, text)


@given(text=st.text(alphabet=st.one_of(st.sampled_from(" \n\tab(.<s>/\u2581\u00e9"), st.characters(codec="utf-8"))))
def test_the_ids_of_any_text_are_the_same(both, text):
    assert_same(both, text)


def test_special_tokens_and_the_side_of_padding(both):
    ours, theirs = both
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.padding_side) == (ours.bos_id, ours.eos_id, "left")
    assert len(theirs) == ours.vocab_size
    batch = theirs(["a b c", "a"], padding=True)
    assert batch.input_ids[1][: -len(ours.encode("a"))][0] == ours.eos_id and batch.attention_mask[1][0] == 0


def test_bos_is_put_before_a_text(both):
    ours, theirs = both
    if ours.kind == "sentencepiece":  # a tokenizer.json says itself what it puts there
        assert theirs("a b").input_ids == [ours.bos_id, *ours.encode("a b")]


def test_a_model_that_changes_the_text_is_refused(tmp_path):
    text = tmp_path / "text"
    text.write_text("\n".join(CORPUS * 20))
    arguments = {"model_prefix": str(tmp_path / "m"), "vocab_size": 200, "model_type": "unigram", "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(input=str(text), **arguments)
    with pytest.raises(DataError, match=r"only a BPE model that leaves the text as it is.*--no-tokenizer"):
        write_hf_tokenizer(load_tokenizer(tmp_path / "m.model"), tmp_path)


def test_the_sentencepiece_file_goes_along(both, tmp_path):
    ours, _ = both
    write_hf_tokenizer(ours, tmp_path)
    assert (tmp_path / "tokenizer.model").exists() == (ours.kind == "sentencepiece")
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["split_special_tokens"] is True
