"""Documents to token arrays on all cores, in the documents' order."""

import functools
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from .config import TokenType
from .documents import Document
from .shards import Tokens
from .tokenizer import Tokenizer, load_tokenizer

_BATCH_BYTES = 512 * 1024
_BATCH_DOCUMENTS = 512
_BATCHES_AHEAD = 4  # a worker: enough to hide the reading, little enough to hold in memory


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A document, and its tokens uint [n]: bos, the text's ids, eos."""

    document: Document
    tokens: Tokens


def available_cores() -> int:
    """Cores this process may use: fewer than the machine has under Slurm or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool(ProcessPoolExecutor):
    """`size` new processes. Not forked: the caller may have threads, which a fork can lock up."""

    def __init__(self, size: int) -> None:
        super().__init__(size, mp_context=multiprocessing.get_context("spawn"))
        self.size = size

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error, what is still queued is not worth waiting for.
        self.shutdown(wait=True, cancel_futures=True)


def tokenize(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    token_type: TokenType,
    pool: Pool | None,
) -> Iterator[Tokenized]:
    """Yields every document tokenized, in order; in this process when `pool` is None."""
    if pool is None:
        for document in documents:
            yield Tokenized(document, _tokens_of(document.text, tokenizer, token_type))
        return
    waiting: deque[tuple[list[Document], Future[list[Tokens]]]] = deque()
    limit = _BATCHES_AHEAD * pool.size
    for batch in _batches(documents):
        texts = [document.text for document in batch]
        waiting.append((batch, pool.submit(_tokenize_texts, texts, tokenizer.path, token_type)))
        if len(waiting) >= limit:
            yield from _finish(*waiting.popleft())
    while waiting:
        yield from _finish(*waiting.popleft())


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _finish(batch: list[Document], future: Future[list[Tokens]]) -> Iterator[Tokenized]:
    for document, tokens in zip(batch, future.result(), strict=True):
        yield Tokenized(document, tokens)


def _tokenize_texts(texts: list[str], path: Path, token_type: TokenType) -> list[Tokens]:
    tokenizer = _worker_tokenizer(path)
    return [_tokens_of(text, tokenizer, token_type) for text in texts]


@functools.lru_cache(maxsize=1)
def _worker_tokenizer(path: Path) -> Tokenizer:
    # A worker process lives for one `prepare` and is given one tokenizer: it reads it once.
    return load_tokenizer(path)


def _tokens_of(text: str, tokenizer: Tokenizer, token_type: TokenType) -> Tokens:
    return np.array([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id], dtype=token_type)
