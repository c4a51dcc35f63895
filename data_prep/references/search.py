"""One task of a neighbour table: find the references of some chunks of one shard."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.config import ReferencePrepareConfig
from data_prep.files import replacing
from data_prep.references.cutting import Cutter, document_number
from data_prep.references.neighbours import CHUNK, NO_REFERENCE, chunks_in
from data_prep.references.overlap import overlaps
from data_prep.references.retrieval import Retriever, open_retriever
from data_prep.references.store import Ids, ReferenceStore
from data_prep.shards.folder import PreparedFolder
from data_prep.shards.manifest import Split
from data_prep.shards.reading import ShardViews, Tokens
from data_prep.tokenizers.tokenizer import Tokenizer

_BATCH = 256  # chunks searched in one call


@dataclass(frozen=True)
class SearchTask:
    """Chunks [first, last) of the shard `shard` of a data folder."""

    shard: str
    split: Split
    first: int
    last: int

    @property
    def file(self) -> str:
        return f"{Path(self.shard).stem}-{self.first}-{self.last}.npy"


def search_tasks(data: PreparedFolder, size: int) -> list[SearchTask]:
    """Returns all chunks of a data folder as tasks of at most `size` chunks."""
    return [
        SearchTask(entry.file, entry.split, first, min(first + size, chunks_in(entry)))
        for entry in data.manifest.shards
        for first in range(0, chunks_in(entry), size)
    ]


def run_search(
    settings: ReferencePrepareConfig,
    references: Path,
    data: Path | str,
    sequence_length: int,
    fingerprints: tuple[str, str],
    task: SearchTask,
    work: Path,
) -> int:
    """Writes the neighbours of a task's chunks into `work`, int32 .npy; returns the number of chunks.

    fingerprints: of references and data, so that a folder that was made anew at the same path is opened anew.
    """
    searcher = _searcher(settings, references, data, sequence_length, fingerprints)
    neighbours = searcher.neighbours(task)
    with replacing(work / task.file) as temporary, temporary.open("wb") as file:
        np.save(file, neighbours)
    return task.last - task.first


@functools.lru_cache(maxsize=1)
def _searcher(
    settings: ReferencePrepareConfig,
    references: Path,
    data: Path | str,
    sequence_length: int,
    fingerprints: tuple[str, str],
) -> "Searcher":
    # A worker process serves one preparation, so it opens index and references once.
    store = ReferenceStore(references)
    return Searcher(settings, store, open_retriever(store), PreparedFolder(data), sequence_length)


class Searcher:
    """Finds the reference of every chunk.

    The query of a chunk is its tokens of its last token's document. Only that document's tokens will see the reference,
    so other documents in the chunk must not influence it.
    """

    def __init__(
        self,
        settings: ReferencePrepareConfig,
        store: ReferenceStore,
        retriever: Retriever,
        data: PreparedFolder,
        sequence_length: int,
    ) -> None:
        self._settings, self._store, self._retriever = settings, store, retriever
        self._data, self._length = data, sequence_length
        self._tokenizer: Tokenizer = store.tokenizer()
        self._cutter = Cutter(self._tokenizer, store.length)
        self._entries = {entry.file: entry for entry in data.manifest.shards}

    def neighbours(self, task: SearchTask) -> NDArray[np.int32]:
        """Returns the references of the task's chunks, int32 [chunks]; -1 where no candidate is allowed."""
        shard = self._data.shard(self._entries[task.shard])
        views = shard.open()
        limit = self._settings.max_overlap if task.split == "train" else self._settings.max_overlap_valid
        out = np.full(task.last - task.first, NO_REFERENCE, dtype=np.int32)
        for begin in range(task.first, task.last, _BATCH):
            chunks = range(begin, min(begin + _BATCH, task.last))
            queries = [self._query(views, chunk) for chunk in chunks]
            retrieved = self._retriever.search([text for text, _ in queries], self._settings.candidates)
            for chunk, candidates, (text, document) in zip(chunks, retrieved, queries, strict=True):
                if text and not text.isspace():
                    out[chunk - task.first] = self._choose(views, chunk, candidates, document, limit)
        return out

    def _query(self, views: ShardViews, chunk: int) -> tuple[str, int]:
        """Returns the chunk's query and the number of its last token's document in the shard."""
        end = (chunk + 1) * CHUNK
        document = int(views.offsets.searchsorted(end - 1, side="right")) - 1
        begin = max(chunk * CHUNK, int(views.offsets[document]))
        return self._tokenizer.decode(self._cutter.bare(views.tokens[begin:end]).tolist()), document

    def _choose(self, views: ShardViews, chunk: int, candidates: Ids, document: int, limit: float) -> int:
        """Returns the first candidate that the rules allow, or -1."""
        candidates = candidates[candidates >= 0]
        samples = [part.tolist() for part in self._samples(views.tokens, chunk)]
        own = self._number(views, document) if self._settings.exclude_same_document else 0
        numbers = self._store.documents(candidates) if own else np.zeros(len(candidates), dtype=np.uint64)
        tokens, lengths = self._store.read(candidates)
        for id, number, row, length in zip(candidates, numbers.tolist(), tokens.tolist(), lengths, strict=True):
            if own and number == own:
                continue
            if not any(overlaps(sample, row[:length], limit) for sample in samples):
                return int(id)
        return NO_REFERENCE

    def _samples(self, tokens: Tokens, chunk: int) -> Iterator[Tokens]:
        """Yields the samples that may read this chunk's reference: its own and, for a sample's last chunk, the next."""
        per_sample = self._length // CHUNK
        sample = chunk // per_sample
        yield tokens[sample * self._length : (sample + 1) * self._length + 1]
        if chunk % per_sample == per_sample - 1:
            yield tokens[(sample + 1) * self._length : (sample + 2) * self._length + 1]

    def _number(self, views: ShardViews, document: int) -> int:
        first, last = views.offsets[document : document + 2]
        return document_number(self._cutter.bare(views.tokens[first:last]))
