"""Llama with retrieval, the published baseline: the model reads the parts of a text that match the question best."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from data_prep import Tokenizer
from data_prep.errors import DataError
from evaluation.babilong.background import split_sentences

CHUNK_TOKENS = 512  # BABILong's RAG-C


class Ranker(Protocol):
    """Ranks parts of a text by their similarity to a question."""

    name: str

    def best(self, parts: Sequence[str], question: str, count: int) -> list[int]:
        """Return the indices of the `count` best parts, the best first."""
        ...


@dataclass(frozen=True)
class Retriever:
    """Shortens a text to its `top_k` best parts, in their order; unit: sentences, or chunks of 512 tokens."""

    ranker: Ranker
    unit: Literal["sentence", "chunk"]
    top_k: int
    tokenizer: Tokenizer

    @property
    def name(self) -> str:
        return f"{self.ranker.name}, {self.top_k} {self.unit}s"

    def shorten(self, context: str, question: str) -> str:
        parts = split_sentences(context) if self.unit == "sentence" else self._chunks(context)
        if len(parts) <= self.top_k:
            return context
        return " ".join(parts[index] for index in sorted(self.ranker.best(parts, question, self.top_k)))

    def _chunks(self, context: str) -> list[str]:
        ids = self.tokenizer.encode(context)
        return [self.tokenizer.decode(ids[at : at + CHUNK_TOKENS]).strip() for at in range(0, len(ids), CHUNK_TOKENS)]


class BM25:
    """Okapi BM25 (Robertson) over words, without English stop words."""

    name = "BM25"

    def __init__(self) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise DataError(
                f"--retrieval: bm25 needs the package bm25s ({error}): pip install 'memtrain[evaluation]'"
            ) from None
        self._library: Any = bm25s

    def best(self, parts: Sequence[str], question: str, count: int) -> list[int]:
        words, (asked,) = self._words(parts), self._words([question])
        known = set().union(*words)
        wanted = [word for word in asked if word in known]
        if not wanted:  # the library cannot rank without a known word
            return list(range(min(count, len(parts))))
        index = self._library.BM25()
        index.index(words, show_progress=False)
        scores = index.get_scores(wanted)
        # a stable sort, so that the earlier of equal parts is first on every machine
        return np.argsort(-np.asarray(scores), kind="stable")[:count].tolist()

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        words: list[list[str]] = self._library.tokenize(
            list(texts), stopwords="en", return_ids=False, show_progress=False
        )
        return words


class Dense:
    """Ranks by the cosine of sentence embeddings."""

    def __init__(self, model: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise DataError(
                f"--retrieval: dense needs the package sentence-transformers ({error}): "
                "pip install 'memtrain[dense]', or use --retrieval bm25"
            ) from None
        try:
            self._encode: Callable[..., Any] = SentenceTransformer(model).encode
        except Exception as error:  # the library raises errors of many kinds
            raise DataError(f"--dense-model: {model} cannot be loaded ({error}); give a folder or a name") from None
        self.name = f"dense {model}"

    def best(self, parts: Sequence[str], question: str, count: int) -> list[int]:
        embeddings = self._encode([question, *parts], normalize_embeddings=True, show_progress_bar=False)
        return np.argsort(-(embeddings[1:] @ embeddings[0]), kind="stable")[:count].tolist()
