"""Find near duplicates by MinHash signatures, with the optional package datasketch."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_prep.config import DedupConfig
from data_prep.errors import DataError

Signature = NDArray[np.uint64]
_SCHEME = "affine32"  # set explicitly, so that all tasks' signatures can be compared


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError as error:
        raise DataError(
            f"dedup.kind: minhash needs the package datasketch ({error}): pip install 'memtrain[dedup]', "
            "or set dedup.kind: exact"
        ) from error
    return datasketch


def _hash32(shingle: bytes) -> int:
    return xxhash.xxh32_intdigest(shingle)


def signature(text: str, config: DedupConfig) -> Signature:
    """Returns the MinHash signature, uint64 [permutations], of the text's word shingles in lower case."""
    words = text.lower().split()
    size = config.shingle_words
    shingles = {" ".join(words[i : i + size]).encode() for i in range(max(1, len(words) - size + 1))}
    sketch = _datasketch().MinHash(num_perm=config.permutations, seed=1, hashfunc=_hash32, scheme=_SCHEME)
    sketch.update_batch(sorted(shingles))
    return np.asarray(sketch.hashvalues, dtype=np.uint64)


class NearDuplicates:
    """Finds documents similar to an earlier one; keeps the signatures of those that are not."""

    def __init__(self, config: DedupConfig) -> None:
        self._config = config
        self._index = _datasketch().MinHashLSH(threshold=config.threshold, num_perm=config.permutations)

    def is_new(self, identity: int, found: Signature) -> bool:
        """Whether no earlier document reaches the threshold of similarity; such a document is added."""
        sketch = _datasketch().MinHash(num_perm=self._config.permutations, seed=1, hashvalues=found, scheme=_SCHEME)
        if any(self._similarity(found, other) >= self._config.threshold for other in self._index.query(sketch)):
            return False
        # The index returns keys. A key contains its signature, so that candidates can be compared exactly.
        self._index.insert((identity, found.tobytes()), sketch, check_duplication=False)
        return True

    @staticmethod
    def _similarity(found: Signature, key: tuple[int, bytes]) -> float:
        return float(np.mean(found == np.frombuffer(key[1], dtype=np.uint64)))


def near_duplicates(documents: Iterable[tuple[int, Signature]], config: DedupConfig) -> set[int]:
    """Returns the identities of documents that are near duplicates of an earlier one; documents: in reading order."""
    index = NearDuplicates(config)
    return {identity for identity, found in documents if not index.is_new(identity, found)}
