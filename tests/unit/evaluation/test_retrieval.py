"""Retrieval finds what the question is about, in the text's order."""

import sys

import pytest

from data_prep import DataError
from evaluation.retrieval import BM25, CHUNK_TOKENS, Dense, Retriever
from tests.unit.evaluation.test_babilong import Bytes

NOISE = [f"The old river number {i} went over a stone." for i in range(200)]
FACTS = ["Mary journeyed to the kitchen.", "John took the milk there.", "Mary moved to the garden."]


def hidden() -> str:
    return " ".join([*NOISE[:50], FACTS[0], *NOISE[50:120], FACTS[1], *NOISE[120:180], FACTS[2], *NOISE[180:]])


def test_sentences_of_the_question_in_their_order() -> None:
    retriever = Retriever(BM25(), "sentence", 2, Bytes())
    assert retriever.shorten(hidden(), "Where is Mary?") == f"{FACTS[0]} {FACTS[2]}"
    assert retriever.name == "BM25, 2 sentences"
    assert retriever.shorten("Mary sat. John stood.", "Where is Mary?") == "Mary sat. John stood."


def test_chunks_are_512_tokens() -> None:
    found = Retriever(BM25(), "chunk", 1, Bytes()).shorten(hidden(), "Where is the milk?")
    assert FACTS[1] in found
    assert len(Bytes().encode(found)) <= CHUNK_TOKENS
    assert found in hidden()


@pytest.mark.parametrize("question", ["Zanzibar?", "", "the of"])
def test_question_of_which_no_word_occurs(question: str) -> None:
    assert Retriever(BM25(), "sentence", 1, Bytes()).shorten(hidden(), question) == NOISE[0]


def test_scores_are_okapis() -> None:
    """Against the formula written out (Lucene's idf, k1 = 1.5, b = 0.75), over parts of unequal length."""
    import math

    parts = ["milk milk apple", "apple garden kitchen office", "milk", "football garden"]
    words, mean = [part.split() for part in parts], 10 / 4

    def score(part: list[str], word: str) -> float:
        found = sum(word in other for other in words)
        often = part.count(word)
        idf = math.log(1 + (len(parts) - found + 0.5) / (found + 0.5))
        return idf * often / (often + 1.5 * (1 - 0.75 + 0.75 * len(part) / mean))

    for question in ("milk apple", "garden", "office milk"):
        scores = [sum(score(part, word) for word in question.split()) for part in words]
        assert BM25().best(parts, question, 4) == sorted(range(4), key=lambda i: -scores[i])


@pytest.mark.parametrize(
    ("module", "make", "message"),
    [
        ("bm25s", BM25, r"--retrieval: bm25 needs the package bm25s .*pip install 'memtrain\[evaluation\]'"),
        ("sentence_transformers", lambda: Dense("x"), r"--retrieval: dense needs .*pip install 'memtrain\[dense\]'"),
    ],
)
def test_missing_package_is_named(module: str, make: object, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=message):
        make()  # type: ignore[operator]
