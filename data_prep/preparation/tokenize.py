"""Tokenize documents on all cores, in their order."""

import functools
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.config import TokenType
from data_prep.errors import DataError
from data_prep.shards.reading import Mask, Tokens
from data_prep.sources.documents import Document
from data_prep.sources.formats import Exercise, as_tokens
from data_prep.tokenizers.tokenizer import Tokenizer, load_tokenizer

_Content = str | Exercise | NDArray[Any]
_Result = tuple[Tokens, Mask | None]
_BATCH_BYTES = 512 * 1024
_BATCH_DOCUMENTS = 512
_BATCHES_AHEAD = 4  # for each worker: enough to overlap reading, and few enough to keep in memory


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A document; its tokens uint [n]: bos, the text's ids, eos; loss_mask uint8 [n], 1 = learned, None: all are."""

    document: Document
    tokens: Tokens
    loss_mask: Mask | None = None


def available_cores() -> int:
    """Returns the cores this process may use, which under Slurm or in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool(ProcessPoolExecutor):
    """A pool of `size` spawned processes. They are not forked, because a fork can deadlock the caller's threads."""

    def __init__(self, size: int) -> None:
        super().__init__(size, mp_context=multiprocessing.get_context("spawn"))
        self.size = size

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the queued work is not needed.
        self.shutdown(wait=True, cancel_futures=True)


def tokenize(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    token_type: TokenType,
    pool: Pool | None,
) -> Iterator[Tokenized]:
    """Yields every document tokenized, in order. pool None: this process tokenizes."""
    if pool is None:
        for document in documents:
            yield Tokenized(document, *_tokens_of(_content(document), tokenizer, token_type))
        return
    waiting: deque[tuple[list[Document], Future[list[_Result]]]] = deque()
    limit = _BATCHES_AHEAD * pool.size
    for batch in _batches(documents):
        contents = [_content(document) for document in batch]
        waiting.append((batch, pool.submit(_tokenize_batch, contents, tokenizer.path, token_type)))
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


def _finish(batch: list[Document], future: Future[list[_Result]]) -> Iterator[Tokenized]:
    for document, result in zip(batch, future.result(), strict=True):
        yield Tokenized(document, *result)


def _content(document: Document) -> _Content:
    return document.text if document.content is None else document.content


def _tokenize_batch(contents: list[_Content], path: Path, token_type: TokenType) -> list[_Result]:
    tokenizer = worker_tokenizer(path)
    return [_tokens_of(content, tokenizer, token_type) for content in contents]


@functools.lru_cache(maxsize=1)
def worker_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer at `path`, loaded once per worker process."""
    # A worker process serves one `prepare` with one tokenizer, so it loads it once.
    return load_tokenizer(path)


def _tokens_of(content: _Content, tokenizer: Tokenizer, token_type: TokenType) -> _Result:
    if isinstance(content, str):
        return _delimited(tokenizer.encode(content), tokenizer, token_type), None
    if isinstance(content, Exercise):
        return _exercise(content, tokenizer, token_type)
    tokens = as_tokens(content, tokenizer.bos_id, tokenizer.eos_id)
    largest, smallest = int(tokens.max(initial=0)), int(tokens.min(initial=0))
    if largest >= tokenizer.vocab_size or smallest < 0:
        raise DataError(
            f"tokenizer.path: {tokenizer.path.name} has {tokenizer.vocab_size} pieces, but the imported tokens reach "
            f"from {smallest} to {largest}: they were made with another tokenizer; name that one"
        )
    return _delimited(tokens, tokenizer, token_type), None


def _exercise(exercise: Exercise, tokenizer: Tokenizer, token_type: TokenType) -> _Result:
    """Returns bos, then each turn with eos after its answer; only answers and their eos are learned."""
    ids, learned = [tokenizer.bos_id], [0]
    for prompt, answer in exercise.turns:
        before, after = tokenizer.encode(prompt), [*tokenizer.encode(answer), tokenizer.eos_id]
        ids += before + after
        learned += [0] * len(before) + [1] * len(after)
    return np.array(ids, dtype=token_type), np.array(learned, dtype=np.uint8)


def _delimited(ids: Sequence[int] | NDArray[Any], tokenizer: Tokenizer, token_type: TokenType) -> Tokens:
    tokens = np.empty(len(ids) + 2, dtype=token_type)
    tokens[0], tokens[-1] = tokenizer.bos_id, tokenizer.eos_id
    tokens[1:-1] = ids if isinstance(ids, np.ndarray) else np.fromiter(ids, token_type, len(ids))
    return tokens
