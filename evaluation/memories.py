"""Explicit memories for a model: a retriever finds references, and a bank or the model itself has their memories."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep import ReferenceStore
from data_prep.bank import Bank
from data_prep.errors import DataError
from data_prep.references.overlap import overlaps
from data_prep.references.retrieval import Retriever, open_retriever
from model.errors import ModelError
from model.explicit import write
from model.explicit.references import memory_shape
from model.fingerprint import weights_fingerprint
from model.network import LanguageModel

EVALUATION_OVERLAP = 2 / 3  # a reference with a larger overlap with the query is not read (arXiv 2407.01178)
_CANDIDATES = 4  # candidates that are retrieved for each reference that is read


class MemorySource:
    """Retrieves `each` references for a query of tokens and returns their memories on the model's device.

    Without a bank the model writes the memories when they are retrieved. It is a `model.explicit.generation.Source`.
    """

    def __init__(
        self,
        net: LanguageModel,
        store: ReferenceStore,
        retriever: Retriever,
        bank: Bank | None = None,
        each: int | None = None,
        max_overlap: float = EVALUATION_OVERLAP,
    ) -> None:
        """Check that model, references and bank fit each other.

        Args:
            each: references that a chunk reads; None: as many as in training.
            max_overlap: a reference with a larger overlap with the query is not read.

        Raises `DataError` or `ModelError` when model, references and bank do not fit each other.
        """
        if net.explicit is None:
            raise ModelError(
                "--references: the model has no explicit memory, or it is off in this phase; use another checkpoint"
            )
        if store.length > net.explicit.reference_length:
            raise DataError(
                f"--references: {store.folder} has references of up to {store.length} tokens, the model reads "
                f"{net.explicit.reference_length} (model.explicit.reference_length); prepare shorter ones"
            )
        shape = memory_shape(net.config)
        if bank is not None and bank.shape.array != shape:
            raise DataError(
                f"--bank: {bank.folder} has memories of shape {bank.shape.array}, the model reads {shape}; write the "
                "bank with this model"
            )
        self.each = each or net.explicit.references
        self._net, self._store, self._retriever, self._bank = net, store, retriever, bank
        self._shape, self._length, self._limit = shape, net.explicit.reference_length, max_overlap
        self._tokenizer = store.tokenizer()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="retrieval")
        parameter = next(net.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    def ids(self, queries: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        """Return the ids of the queries' references, int64 [n, each], the best first; -1: there are no more."""
        ids = np.full((len(queries), self.each), -1, dtype=np.int64)
        special = (self._tokenizer.bos_id, self._tokenizer.eos_id)
        bare = [[token for token in query if token not in special] for query in queries]
        texts = [self._tokenizer.decode(query) if query else "" for query in bare]
        candidates = self._retriever.search(texts, self.each * _CANDIDATES)
        tokens, lengths = self._store.read(candidates.reshape(-1))
        for row, query in enumerate(bare):
            if not query:
                continue
            first, kept = row * candidates.shape[1], 0
            for place, id in enumerate(candidates[row].tolist(), start=first):
                if id < 0 or kept == self.each:
                    break
                if not overlaps(query, tokens[place, : lengths[place]].tolist(), self._limit):
                    ids[row, kept] = id
                    kept += 1
        return ids

    def find(self, queries: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return memories [n, each, L_mem, 2, H_kv, k, d] and lengths int64 [n, each] of the queries' references."""
        ids = self.ids(queries).reshape(-1)
        tokens, lengths = self._store.read(ids)
        if self._bank is None:
            memories = write_memories(self._net, tokens, lengths)
        else:
            memories = as_tensor(self._bank.read(ids)).to(self._device)
        shape = len(queries), self.each
        counts = torch.from_numpy(lengths).to(self._device)
        return memories.to(self._dtype).view(*shape, *self._shape), counts.view(shape)

    def texts(self, queries: Sequence[Sequence[int]]) -> list[list[str]]:
        """Return the texts of each query's references, the best first."""
        ids = self.ids(queries)
        texts = self._store.texts(ids.reshape(-1), self._tokenizer)
        return [[t for t in texts[row * self.each : (row + 1) * self.each] if t] for row in range(len(queries))]

    def prefetch(self, queries: Sequence[Sequence[int]]) -> None:
        """Start to retrieve and to read from disk in a thread, and return at once."""
        bank = self._bank
        if bank is not None:
            wanted = [list(query) for query in queries]
            self._pool.submit(lambda: bank.prefetch(self.ids(wanted).reshape(-1)))

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._bank is not None:
            self._bank.close()


@torch.no_grad()
def write_memories(net: LanguageModel, tokens: NDArray[np.int64], lengths: NDArray[np.int64]) -> Tensor:
    """Write references int64 [n, R], padded to the model's length: memories [n, L_mem, 2, H_kv, k, d]."""
    assert net.explicit is not None
    device = next(net.parameters()).device
    padded = np.pad(tokens, ((0, 0), (0, net.explicit.reference_length - tokens.shape[1])))
    return write(net, torch.from_numpy(padded).to(device), torch.from_numpy(lengths).to(device))


def as_tensor(memories: NDArray[np.generic]) -> Tensor:
    """Return a bank's memories as a tensor; uint16 becomes bfloat16."""
    if memories.dtype == np.uint16:
        return torch.from_numpy(memories.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(memories)


def as_stored(memories: Tensor, dtype: str) -> NDArray[np.generic]:
    """Return memories as an array for a bank of `dtype`; bfloat16 becomes uint16."""
    if dtype == "bfloat16":
        return np.asarray(memories.to(torch.bfloat16).cpu().view(torch.int16).numpy().view(np.uint16))
    return np.asarray(memories.to(getattr(torch, dtype)).cpu().numpy())


def open_source(
    net: LanguageModel,
    references: Path,
    bank: Path | None,
    tokenizer_fingerprint: str,
    *,
    each: int | None = None,
    cold: bool = False,
    cache_bytes: int = 1 << 30,
) -> MemorySource:
    """Return the source of a folder of references and a bank of this model.

    cold: memories that the bank lacks are written when they are first retrieved, and stored.
    Raises `DataError` when tokenizer, references, bank and model do not belong together.
    """
    store = ReferenceStore(references)
    if store.manifest.tokenizer.fingerprint != tokenizer_fingerprint:
        raise DataError(
            f"--references: {references} was made with tokenizer {store.manifest.tokenizer.fingerprint}, the model "
            f"with {tokenizer_fingerprint}; prepare the references with the model's tokenizer"
        )
    opened = None
    if bank is not None:

        def write_missing(ids: NDArray[np.int64]) -> NDArray[np.generic]:
            return as_stored(write_memories(net, *store.read(ids)), opened_dtype)

        opened = Bank(
            bank,
            weights_fingerprint(net),
            store_fingerprint=store.fingerprint,
            cache_bytes=cache_bytes,
            write_missing=write_missing if cold else None,
        )
        opened_dtype = opened.dtype
    return MemorySource(net, store, open_retriever(store), opened, each)
