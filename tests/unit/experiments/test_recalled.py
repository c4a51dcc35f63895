"""What a model that recalls writes and reads: tokens belong to the right sentences, and means are means of them."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np

from evaluation.babilong.generator import Sample
from experiments.recalled import BOOK, OTHER_FACT, QUESTION, SUPPORT, Seen, counted, draw, owners

# a token is a word, or a sign
WORDS: Any = SimpleNamespace(encode=lambda text: re.findall(r"\w+|[^\w\s]", text))
FACTS = ("Mary went to the hall.", "John went to the park.", "Mary went to the garden.")


def sample(*between: str) -> Sample:
    context, places = "", []
    for noise, fact in zip(between, FACTS, strict=True):
        context += noise
        places.append(len(context))
        context += fact
    return Sample("qa1", "1k", context, "Where is Mary?", "garden", FACTS, tuple(places))


def test_every_token_belongs_to_its_sentence() -> None:
    asked = sample("It rained. ", " So it was. ", " ")
    text = f"{asked.context}\n{asked.question}\n"
    found = owners(WORDS, asked, text, 1 + len(WORDS.encode(text))).tolist()
    expected = [BOOK] * 4 + [OTHER_FACT] * 6 + [BOOK] * 4 + [OTHER_FACT] * 6 + [SUPPORT] * 6 + [QUESTION] * 4
    assert found == expected


def test_means_are_over_the_tokens_of_each_kind_and_the_picture_has_every_token() -> None:
    owner = np.array([BOOK, BOOK, OTHER_FACT, SUPPORT, QUESTION])
    written = np.array([[0.2, 0.4, 0.5, 0.9, 0.0]])
    part = np.array([[0.1, 0.1, 0.2, 0.6, 0.0]])
    one = Seen(list("abcde"), owner, written, part, right=True)
    found = counted([one, Seen(one.tokens, owner, written, part, right=False)])
    assert found["right"] == 0.5
    assert found["strength of writes"] == {
        "books": [0.3],
        "other facts": [0.5],
        "the fact that answers": [0.9],
        "the question": [0.0],
    }
    assert found["part of what is read"] == {
        "books": [0.2],
        "other facts": [0.2],
        "the fact that answers": [0.6],
        "the question": [0.0],
    }
    labels = [tick.get_text() for tick in draw(one).axes[1].get_xticklabels()]
    assert labels == list("abcde")
