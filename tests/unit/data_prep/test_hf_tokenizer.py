"""Transformers' AutoTokenizer on what we write: the same ids and the same text as our tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_prep import Tokenizer
from data_prep.errors import DataError
from data_prep.tokenizers.hugging_face import write_hf_tokenizer
from data_prep.tokenizers.tokenizer import load_tokenizer, train_sentencepiece
from training.errors import ConfigError
from training.huggingface.export import _prove_tokenizer

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


def assert_same(both: tuple[Tokenizer, Any], text: str) -> None:
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
    assert theirs("a b").input_ids == [ours.bos_id, *ours.encode("a b")]


def made_like(folder: Path, kind: str) -> Tokenizer:
    """A GPT-NeoX-like tokenizer.json whose own settings do not put bos, and only bos, before a whole text."""
    specials = ["<|endoftext|>"] if kind == "neox" else ["<s>", "</s>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet)
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.train_from_iterator(CORPUS, trainer)
    template = tokenizers.processors.TemplateProcessing
    if kind == "eos too":
        made.post_processor = template(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    elif kind == "offsets":
        made.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    elif kind == "cuts":
        made.enable_truncation(8)
        made.enable_padding(length=8, pad_id=1, pad_token="</s>")
    made.save(str(folder / "own.json"))
    return load_tokenizer(folder / "own.json")


@pytest.mark.parametrize("kind", ["neox", "eos too", "offsets", "cuts"])
def test_what_a_tokenizer_json_says_of_bos_is_replaced_by_what_training_does(kind, tmp_path):
    ours = made_like(tmp_path, kind)
    write_hf_tokenizer(ours, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a b", "", "one two three " * 50):
        assert theirs(text).input_ids == [ours.bos_id, *ours.encode(text)]
    _prove_tokenizer(ours, tmp_path, runs_its_code=False)


def test_an_exported_tokenizer_without_bos_is_not_proven(tmp_path):
    ours = made_like(tmp_path, "neox")
    write_hf_tokenizer(ours, tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tmp_path / "own.json").read_bytes())
    with pytest.raises(ConfigError, match=r"training put bos 0 before .*--no-tokenizer"):
        _prove_tokenizer(ours, tmp_path, runs_its_code=False)


def test_a_model_that_changes_the_text_is_refused(tmp_path):
    text = tmp_path / "text"
    text.write_text("\n".join(CORPUS * 20))
    arguments: dict[str, Any] = {
        "model_prefix": str(tmp_path / "m"),
        "vocab_size": 200,
        "model_type": "unigram",
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(input=str(text), **arguments)
    with pytest.raises(DataError, match=r"only a BPE model that does not change the text.*--no-tokenizer"):
        write_hf_tokenizer(load_tokenizer(tmp_path / "m.model"), tmp_path)


def test_the_sentencepiece_file_goes_along(both, tmp_path):
    ours, _ = both
    write_hf_tokenizer(ours, tmp_path)
    assert (tmp_path / "tokenizer.model").exists() == (ours.kind == "sentencepiece")
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["split_special_tokens"] is True
