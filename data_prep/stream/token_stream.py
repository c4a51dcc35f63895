"""The endless stream of training samples; sample g is a pure function of (folder, mix, seed, g)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from data_prep.config import CacheConfig
from data_prep.errors import DataError
from data_prep.references.neighbours import NeighbourTable
from data_prep.shards.folder import PreparedFolder
from data_prep.shards.manifest import ShardEntry, Split
from data_prep.shards.reading import Shard
from data_prep.sources.remote import RemoteCache
from data_prep.stream.batch import Batch
from data_prep.stream.mixing import Int64, Mix, MixSchedule
from data_prep.stream.windows import SourceWindows

# Samples are located this many at a time, in one vectorised computation for several batches.
_BLOCK = 1024
_BLOCKS_KEPT = 16


@dataclass(frozen=True)
class SampleOrigin:
    """The origin of a sample; window w of a shard is its tokens [w * L, w * L + L + 1)."""

    source: str
    epoch: int
    shard: str
    window: int


class TokenStream:
    """Samples of `sequence_length` + 1 tokens of a prepared folder, in an order that is computed, not stored.

    The position in a run is the number of samples seen, so a run can continue with another number of data-parallel
    ranks. Each source passes through all its windows once an epoch, in an order keyed by seed, data, source and epoch.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        split: Split = "train",
        sequence_length: int,
        seed: int,
        mix: Mix = None,
        shuffle: bool = True,
        shuffle_shards: int | None = None,
        checksums: bool = True,
        cache: CacheConfig | None = None,
        references: Path | None = None,
    ) -> None:
        """Reads the manifest and checks file sizes; opens no shard.

        Args:
            mix: source -> weight from the first sample on, or [(first sample, weights), ...]; None: by size.
            shuffle: False keeps each source's windows in the order of the shards.
            shuffle_shards: number of shards of a source, in shuffled order, whose windows are shuffled together, for a
                remote folder that is larger than the cache; None: all.
            checksums: compare a shard's checksum before its first token is used.
            cache: where copies of a remote folder's shards are kept.
            references: folder of references with a table for these data and samples; batches then have `neighbours`.

        Raises:
            DataError: the folder is incomplete, the split has no window, or the mix is unusable.
        """
        if sequence_length < 1:
            raise DataError(f"sequence_length is {sequence_length}; it must be at least 1")
        self.folder = PreparedFolder(folder, cache)
        self.manifest = self.folder.manifest
        self._data = self.manifest.fingerprint
        self.sequence_length, self.seed, self.split = sequence_length, seed, split
        self.shuffle, self.shuffle_shards = shuffle, shuffle_shards
        entries = [entry for entry in self.manifest.shards if entry.split == split]
        self.tokens = sum(entry.tokens for entry in entries)
        self.vocab_size = self.manifest.tokenizer.vocab_size
        self._shards: list[Shard] = []
        self._sources: list[SourceWindows] = []
        by_source: dict[str, list[ShardEntry]] = {}
        for entry in entries:
            by_source.setdefault(entry.source, []).append(entry)
        for name, mine in by_source.items():
            self._sources.append(SourceWindows(name, mine, len(self._shards), sequence_length, shuffle_shards))
            self._shards += [self.folder.shard(entry, checksums) for entry in mine]
        if self.folder.cache is not None:
            self._follow_cache(self.folder.cache)
        if not len(self) and split == "valid" and not entries:
            raise DataError(
                f"{folder}: split 'valid' has 0 tokens: no document was held out; prepare it again with valid_fraction "
                "above 0, or set data.prepare.valid_fraction: 0 to train without evaluation"
            )
        if not len(self):
            raise DataError(
                f"{folder}: split {split!r} has {self.tokens} tokens in {len(entries)} shards, and in none the "
                f"{sequence_length + 1} that a sample of sequence_length {sequence_length} takes; "
                f"lower sequence_length or prepare more text{', or raise valid_fraction' * (split == 'valid')}"
            )
        opened = [shard.entry for shard in self._shards]
        self.table = NeighbourTable(references, self.manifest, opened, sequence_length) if references else None
        self._schedule = MixSchedule(mix, self.windows, sequence_length)
        self._dtype = np.dtype(self.manifest.token_type)
        self._token_bytes = self._dtype.itemsize
        self._raw: dict[int, memoryview] = {}  # bytes of the open shards' tokens
        self._blocks: dict[int, tuple[list[int], list[int]]] = {}

    def __len__(self) -> int:
        """Number of samples of an epoch, which has every window of every source once."""
        return sum(source.windows for source in self._sources)

    @property
    def windows(self) -> dict[str, int]:
        """Source -> number of its samples in one epoch."""
        return {source.name: source.windows for source in self._sources}

    @property
    def fingerprint(self) -> str:
        """xxh3 (hex) of the data and of the settings that determine the order within sources, without the mix."""
        parts: tuple[object, ...] = (self._data, self.split, self.sequence_length, self.seed, self.shuffle)
        if self.shuffle_shards is not None:
            parts += (self.shuffle_shards,)
        if self.table is not None:
            parts += (self.table.fingerprint,)
        return xxhash.xxh3_64_hexdigest(repr(parts).encode())

    def batch(self, indices: Sequence[int]) -> Batch:
        """Returns the samples `indices` of the run, any number in any order, each at least 0.

        Raises:
            DataError: an index is negative, or a shard that is read for the first time is damaged.
        """
        shards, starts = self._places(indices)
        width = self.sequence_length + 1
        size, row_bytes, raw = self._token_bytes, width * self._token_bytes, self._raw
        try:
            parts = [raw[s][t * size : t * size + row_bytes] for s, t in zip(shards, starts, strict=True)]
        except KeyError:  # a shard is not open yet
            opened = [self._open(s) for s in shards]
            parts = [o[t * size : t * size + row_bytes] for o, t in zip(opened, starts, strict=True)]
        # One allocation, and one copy for each sample; assigning numpy rows one by one takes twice as long.
        tokens = np.frombuffer(bytearray().join(parts), dtype=self._dtype).reshape(len(parts), width)
        return Batch(tokens, [self._shards[shard] for shard in shards], starts, self.table, shards)

    def _open(self, shard: int) -> memoryview:
        raw = self._raw[shard] = self._shards[shard].open().raw
        return raw

    def epochs(self, samples: int) -> dict[str, float]:
        """Returns, by source, how many epochs of it a run of `samples` samples has read; 1.5 is one and a half.

        Sample g is in epoch `int(epochs(g)[describe(g).source])` of its source, counted from 0.
        """
        counts = self._schedule.counts(samples).tolist()
        return {
            source.name: count / source.windows if source.windows else 0.0
            for source, count in zip(self._sources, counts, strict=True)
        }

    def describe(self, index: int) -> SampleOrigin:
        """Returns the origin of sample `index` of the run."""
        samples = np.array([index], dtype=np.int64)
        source, number = self._schedule.locate(samples)
        shard, start = self._place(index)
        chosen = self._sources[int(source[0])]
        window = start // self.sequence_length
        return SampleOrigin(chosen.name, int(number[0]) // chosen.windows, self._shards[shard].entry.file, window)

    def _places(self, indices: Sequence[int]) -> tuple[list[int], list[int]]:
        """Returns shards and first tokens of samples."""
        if isinstance(indices, range) and indices.step == 1 and 0 <= indices.start < indices.stop:
            number, first = divmod(indices.start, _BLOCK)
            last = indices.stop - number * _BLOCK
            if last <= _BLOCK:  # the usual case in training: consecutive samples
                shards, starts = self._block(number)
                return shards[first:last], starts[first:last]
        places = [self._place(index) for index in indices]
        return [shard for shard, _ in places], [start for _, start in places]

    def _place(self, index: int) -> tuple[int, int]:
        """Returns shard and first token of a sample."""
        if index < 0:
            raise DataError(f"sample index is {index}; samples are numbered from 0")
        number, within = divmod(int(index), _BLOCK)
        shards, starts = self._block(number)
        return shards[within], starts[within]

    def _block(self, number: int) -> tuple[list[int], list[int]]:
        """Returns shards and first tokens of the _BLOCK samples from number * _BLOCK on."""
        block = self._blocks.get(number)
        if block is None:
            block = self._compute_block(number)
            if self.folder.cache is not None:  # the next block's shards are fetched ahead
                following = self._blocks.get(number + 1) or self._compute_block(number + 1)
                coming = [shard for shard in dict.fromkeys(following[0]) if shard not in self._raw]
                self.folder.prefetch([self._shards[shard].entry for shard in coming])
        return block

    def _compute_block(self, number: int) -> tuple[list[int], list[int]]:
        shards, starts = self._locate(np.arange(number * _BLOCK, (number + 1) * _BLOCK, dtype=np.int64))
        if len(self._blocks) >= _BLOCKS_KEPT:
            self._blocks.pop(next(iter(self._blocks)), None)
        self._blocks[number] = (shards.tolist(), starts.tolist())
        return self._blocks[number]

    def _follow_cache(self, cache: RemoteCache) -> None:
        """Closes a shard whose copy leaves the cache, so that its disk space is freed."""
        numbers = {shard.entry.file: number for number, shard in enumerate(self._shards)}

        def let_go(path: Path) -> None:
            number = numbers.get(path.name.partition("-")[2])
            if number is not None:
                self._shards[number].close()
                self._raw.pop(number, None)

        cache.on_removal(let_go)

    def _locate(self, samples: Int64) -> tuple[Int64, Int64]:
        """Returns shard and first token, int64 [n] each, of sample numbers int64 [n]."""
        shards, starts = np.empty_like(samples), np.empty_like(samples)
        source, number = self._schedule.locate(samples)
        for current in np.unique(source):
            here = source == current
            chosen = self._sources[current]
            epochs, windows = np.divmod(number[here], chosen.windows)
            mine = np.empty_like(windows), np.empty_like(windows)
            for epoch in np.unique(epochs):
                now = epochs == epoch
                key = self._key(chosen.name, int(epoch)) if self.shuffle else None
                mine[0][now], mine[1][now] = chosen.places(windows[now], key)
            shards[here], starts[here] = mine
        return shards, starts

    def _key(self, source: str, epoch: int) -> int:
        parts = (self._data, self.split, self.seed, source, epoch)
        return xxhash.xxh3_64_intdigest(repr(parts).encode())
