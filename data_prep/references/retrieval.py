"""Retrieve references for texts, by words (BM25) or by embeddings (sentence-transformers and FAISS)."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep.config import RetrieverConfig
from data_prep.errors import DataError
from data_prep.files import file_checksum, sync
from data_prep.references.store import Ids, ReferenceStore
from data_prep.shards.manifest import FileName, Record, Sealed

INDEX_FOLDER = "index"
_BATCH = 4096  # references whose text is in memory at once
# Words; in scripts without spaces each character is a word.
_WORDS = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"

Embed = Callable[[Sequence[str]], NDArray[np.float32]]  # texts [n] -> unit vectors [n, d]


class Retriever(Protocol):
    """Retrieves references for texts."""

    def search(self, texts: Sequence[str], count: int) -> Ids:
        """Returns int64 [n, count], the ids of each text's best references, the best first; -1 after the last."""
        ...


class IndexFile(Record):
    """A file of the index with its size in bytes and its xxh3 (hex)."""

    file: FileName
    bytes: int
    xxh3: str


class IndexManifest(Sealed):
    """The manifest of an index: of which references and settings it was made."""

    version: Literal[1] = 1
    kind: Literal["index"] = "index"
    store_fingerprint: str
    settings: RetrieverConfig
    files: list[IndexFile]


def build_index(store: ReferenceStore, settings: RetrieverConfig, embed: Embed | None = None) -> None:
    """Makes the index of all references, unless it exists. embed: used instead of the settings' model.

    Raises DataError when a library is missing (with the line that installs it).
    """
    folder = store.folder / INDEX_FOLDER
    if folder.is_dir():
        found = IndexManifest.read(folder, "launchers/prepare_data.py")
        if found.store_fingerprint == store.fingerprint and found.settings == settings:
            return
        shutil.rmtree(folder)
    building = folder.with_name(f".{INDEX_FOLDER}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    if settings.kind == "bm25":
        _build_bm25(store, settings, building)
    else:
        _build_dense(store, settings, building, embed or sentence_embedder(settings.model))
    paths = sorted(building.iterdir())
    entries = [IndexFile(file=p.name, bytes=p.stat().st_size, xxh3=file_checksum(p)) for p in paths]
    IndexManifest(store_fingerprint=store.fingerprint, settings=settings, files=entries).save(building)
    building.rename(folder)
    sync(store.folder)


def open_retriever(store: ReferenceStore, embed: Embed | None = None, checksums: bool = True) -> Retriever:
    """Returns the retriever of a folder of references; BM25's arrays are memory-mapped.

    Raises DataError when the index is missing, damaged, or made of other references.
    """
    folder = store.folder / INDEX_FOLDER
    manifest = IndexManifest.read(folder, "launchers/prepare_data.py (data.references.prepare)")
    if manifest.store_fingerprint != store.fingerprint:
        raise DataError(f"{folder}: was made from other references; delete it and run launchers/prepare_data.py again")
    for entry in manifest.files:
        path = folder / entry.file
        size = path.stat().st_size if path.is_file() else None
        if size != entry.bytes or (checksums and file_checksum(path) != entry.xxh3):
            raise DataError(f"{path}: is missing or damaged; delete {folder} and run launchers/prepare_data.py again")
    if manifest.settings.kind == "bm25":
        return BM25Retriever(folder)
    return DenseRetriever(folder, embed or sentence_embedder(manifest.settings.model))


def _texts(store: ReferenceStore) -> Iterator[list[str]]:
    tokenizer = store.tokenizer()
    for first in range(0, len(store), _BATCH):
        yield store.texts(np.arange(first, min(first + _BATCH, len(store))), tokenizer)


def _words(texts: Sequence[str]) -> Any:
    import bm25s

    return bm25s.tokenize(list(texts), token_pattern=_WORDS, stopwords="english", return_ids=False, show_progress=False)


def _build_bm25(store: ReferenceStore, settings: RetrieverConfig, folder: Path) -> None:
    import bm25s

    numbers: dict[str, int] = {}
    documents: list[list[int]] = []
    for texts in _texts(store):
        documents += [[numbers.setdefault(word, len(numbers)) for word in words] for words in _words(texts)]
    index = bm25s.BM25(k1=settings.k1, b=settings.b)
    numbers = numbers or {"": 0}
    index.index((documents, numbers), create_empty_token=False, show_progress=False)
    index.save(folder, show_progress=False)


class BM25Retriever:
    """BM25 over the words of the references, in lower case, without English function words."""

    def __init__(self, folder: Path) -> None:
        import bm25s

        self._index = bm25s.BM25.load(folder, mmap=True, show_progress=False)

    def search(self, texts: Sequence[str], count: int) -> Ids:
        found = np.full((len(texts), count), -1, dtype=np.int64)
        for row, words in enumerate(_words(texts)):
            known = [word for word in words if word in self._index.vocab_dict]
            if not known:
                continue
            scores = self._index.get_scores(known)
            kept = min(count, len(scores))
            best = np.argpartition(scores, len(scores) - kept)[len(scores) - kept :]
            best = best[np.lexsort((best, -scores[best]))]
            best = best[scores[best] > 0]
            found[row, : len(best)] = best
        return found


def _build_dense(store: ReferenceStore, settings: RetrieverConfig, folder: Path, embed: Embed) -> None:
    faiss = import_extra("faiss", "dense")
    vectors = np.concatenate([embed(texts) for texts in _texts(store)])
    index = faiss.index_factory(vectors.shape[1], settings.index, faiss.METRIC_INNER_PRODUCT)
    try:
        if not index.is_trained:
            index.train(vectors)
        index.add(vectors)
    except RuntimeError as error:
        raise DataError(
            f"data.references.prepare.retriever.index is {settings.index!r}, which {len(vectors)} references cannot "
            f"train ({str(error).strip().splitlines()[-1]}); choose a smaller one, or Flat"
        ) from error
    faiss.write_index(index, str(folder / "vectors.faiss"))


class DenseRetriever:
    """Nearest embeddings by inner product, in a FAISS index, which is memory-mapped if its kind allows that."""

    def __init__(self, folder: Path, embed: Embed) -> None:
        faiss = import_extra("faiss", "dense")
        self._index = faiss.read_index(str(folder / "vectors.faiss"), faiss.IO_FLAG_MMAP)
        self._embed = embed

    def search(self, texts: Sequence[str], count: int) -> Ids:
        if not texts:
            return np.empty((0, count), dtype=np.int64)
        return np.asarray(self._index.search(self._embed(texts), count)[1], dtype=np.int64)


def sentence_embedder(model: str) -> Embed:
    """Returns the embedding function of a sentence-transformers model.

    Raises DataError when the library is missing or the model cannot be loaded.
    """
    library = import_extra("sentence_transformers", "dense")
    try:
        network = library.SentenceTransformer(model)
    except Exception as error:  # hub, file and format errors of several libraries
        raise DataError(
            f"data.references.prepare.retriever.model is {model!r}, which cannot be loaded ({error}); "
            "give the name of a sentence-transformers model, or a folder that holds one"
        ) from error

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = network.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)

    return embed


def import_extra(name: str, extra: str) -> Any:
    """Returns the module `name`. Raises DataError, with the command that installs it, when it is missing."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f'{name} is not installed ({error}); run: pip install -e ".[{extra}]"') from error
