"""The windows of one source, and their order in an epoch."""

from collections.abc import Sequence

import numpy as np

from data_prep.shards.manifest import ShardEntry
from data_prep.stream.mixing import Int64
from data_prep.stream.permutation import mix64, permute


class SourceWindows:
    """A source's windows of `sequence_length` + 1 tokens, numbered over all its shards."""

    def __init__(
        self,
        name: str,
        entries: Sequence[ShardEntry],
        first_shard: int,
        sequence_length: int,
        shuffle_shards: int | None = None,
    ) -> None:
        """first_shard: number of the source's first shard. shuffle_shards: see `places`."""
        self.name, self.first_shard = name, first_shard
        self._length = sequence_length
        self._counts = np.array([max(0, entry.tokens - 1) // sequence_length for entry in entries], dtype=np.int64)
        self._ends = np.cumsum(self._counts, dtype=np.int64)
        self.windows = int(self._counts.sum())
        self._together = shuffle_shards
        self._orders: dict[int, tuple[Int64, Int64]] = {}

    def places(self, windows: Int64, key: int | None) -> tuple[Int64, Int64]:
        """Returns shard and first token, int64 [n] each, of an epoch's windows at positions `windows`, int64 [n].

        key: of the epoch's order; None: the order of the shards. With `shuffle_shards` = k the shards are shuffled, and
        windows are shuffled among k neighbours in that order, so that at most 2 k shards are in use at a time. Without
        it windows are shuffled among all shards. Memory is O(shards) at most.
        """
        order, ends = None, self._ends
        if key is not None and self._together is None:
            windows = permute(windows, self.windows, key)
        elif key is not None:
            order, ends = self._order(key)
            windows = self._within_groups(windows, ends, key)
        shard = np.searchsorted(ends, windows, side="right")
        counts = self._counts if order is None else self._counts[order]
        start = (windows - (ends[shard] - counts[shard])) * self._length
        return self.first_shard + (shard if order is None else order[shard]), start

    def _order(self, key: int) -> tuple[Int64, Int64]:
        """Returns the order of the shards in an epoch, and the ends of their windows in it, int64 [shards] each."""
        cached = self._orders.get(key)
        if cached is None:
            shards = len(self._counts)
            order = permute(np.arange(shards, dtype=np.int64), shards, mix64(key))
            cached = order, np.cumsum(self._counts[order], dtype=np.int64)
            if len(self._orders) > 4:  # only the present epoch and the next are in use
                self._orders.clear()
            self._orders[key] = cached
        return cached

    def _within_groups(self, windows: Int64, ends: Int64, key: int) -> Int64:
        assert self._together is not None
        group_ends = np.append(ends[self._together - 1 :: self._together], ends[-1:])
        group = np.searchsorted(group_ends, windows, side="right")
        out = np.empty_like(windows)
        for current in np.unique(group):
            here = group == current
            first = int(group_ends[current - 1]) if current else 0
            size = int(group_ends[current]) - first
            out[here] = first + permute(windows[here] - first, size, key + int(current) + 1)
        return out
