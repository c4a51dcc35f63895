"""Choose documents by their hash: train or valid, or a sample of a given size. Order has no influence."""

import heapq
from collections.abc import Iterable
from typing import Generic, TypeVar

import xxhash

from data_prep.shards.manifest import Split
from data_prep.sources.documents import Document

# Different seeds make sampling independent of holding out.
_IDENTITY, _SPLIT, _SAMPLE, _TOKENIZER = 0, 1, 2, 3
_RANGE = 2**64

Kept = TypeVar("Kept")


def identity_hash(content: bytes) -> int:
    """Returns the 64-bit xxh3 of a document's bytes: equal for exact duplicates, never 0."""
    return xxhash.xxh3_64_intdigest(content, _IDENTITY) or 1


def split_of(content: bytes, valid_fraction: float) -> Split:
    """Returns "valid" for about `valid_fraction` of all documents, else "train"."""
    return "valid" if xxhash.xxh3_64_intdigest(content, _SPLIT) < valid_fraction * _RANGE else "train"


def sample_hash(content: bytes) -> int:
    """Returns a 64-bit number; a document is in a sample when it is at most the sample's threshold."""
    return xxhash.xxh3_64_intdigest(content, _SAMPLE)


class _Sample(Generic[Kept]):
    """The documents of the smallest hashes, together at most `max_bytes`, but at least one document."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._total = 0
        self._limit = _RANGE  # the smallest hash that did not fit: only smaller ones are accepted
        self._heap: list[
            tuple[int, int, Kept]
        ] = []  # (-hash, bytes, kept): the first has the largest hash and leaves next
        self._hashes: set[int] = set()

    def offer(self, number: int, size: int, kept: Kept) -> None:
        if number >= self._limit or number in self._hashes:
            return
        heapq.heappush(self._heap, (-number, size, kept))
        self._hashes.add(number)
        self._total += size
        while self._total > self._max_bytes and len(self._heap) > 1:
            dropped, size, _ = heapq.heappop(self._heap)
            self._limit = -dropped
            self._hashes.remove(-dropped)
            self._total -= size

    def result(self) -> list[tuple[int, Kept]]:
        """Returns (hash, kept) of each document, by increasing hash."""
        return sorted((-number, kept) for number, _, kept in self._heap)


def sample_threshold(documents: Iterable[Document], max_bytes: int) -> int:
    """Returns the largest `sample_hash` of a sample of at most `max_bytes` UTF-8 bytes (at least one document).

    It takes one pass, and memory for the number of sampled documents, not for their text.
    """
    sample = _Sample[None](max_bytes)
    for document in documents:
        content = document.bytes
        sample.offer(sample_hash(content), len(content), None)
    chosen = sample.result()
    return chosen[-1][0] if chosen else 0


def sample_texts(documents: Iterable[Document], max_bytes: int) -> list[str]:
    """Returns distinct texts, together at most `max_bytes` but at least one, chosen and ordered by hash."""
    sample = _Sample[str](max_bytes)
    for document in documents:
        content = document.bytes
        sample.offer(xxhash.xxh3_64_intdigest(content, _TOKENIZER), len(content), document.text)
    return [text for _, text in sample.result()]
