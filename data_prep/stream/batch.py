"""What the stream gives: tokens at once, document numbers and the loss mask when somebody asks."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data_prep.references.neighbours import CHUNK, NeighbourTable
from data_prep.shards.reading import Shard, Tokens


class Batch:
    """B samples of L + 1 tokens: inputs are tokens[:, :-1], targets tokens[:, 1:].

    tokens: uint16 or uint32 [B, L + 1], as the shards store them; widening them is the reader's to do.
    document_ids: int32 [B, L + 1]; 0, 1, 2, ... by document within the sample.
    loss_mask: bool [B, L]; False at t where tokens[t + 1] belongs to another document than tokens[t], or where
        the shard's own mask says that tokens[t + 1] is not to be learned.

    The last two are computed when they are first read: copying the tokens costs less than they do.
    So is, where the stream has a table of neighbours (None without one):

    neighbours: int64 [B, U], U = L / 64; the reference that chunk u's own tokens (tokens[:, 64 u : 64 u + 64])
        retrieved; -1: none. Nothing is shifted: a reader that must be causal gives chunk u what chunk u - 1 found.
    """

    def __init__(
        self,
        tokens: Tokens,
        shards: Sequence[Shard],
        starts: Sequence[int],
        table: NeighbourTable | None = None,
        numbers: Sequence[int] = (),
    ) -> None:
        """shards, starts: for each sample, the shard it was cut from and its first token there.
        numbers: the shards' numbers in `table`."""
        self.tokens = tokens
        self._table, self._numbers = table, numbers
        # The views, not the shards: a shard that is closed meanwhile stays readable until this batch is gone.
        self._views = [shard.open() for shard in shards]
        self._starts = starts

    @cached_property
    def _begins(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row, column) of every token but a sample's first that begins a document, both int64 [n]."""
        width = self.tokens.shape[1]
        found = []
        for row, (views, start) in enumerate(zip(self._views, self._starts, strict=True)):
            first, last = views.offsets.searchsorted((start + 1, start + width)).tolist()
            if first < last:
                found.append(views.offsets[first:last] + (row * width - start))
        flat = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
        rows, columns = np.divmod(flat, width)
        return rows, columns

    @cached_property
    def document_ids(self) -> NDArray[np.int32]:
        ids = np.zeros(self.tokens.shape, dtype=np.int32)
        rows, columns = self._begins
        if len(rows):
            ids[rows, columns] = 1
            np.cumsum(ids, axis=1, out=ids)
        return ids

    @cached_property
    def neighbours(self) -> NDArray[np.int64] | None:
        if self._table is None:
            return None
        count = (self.tokens.shape[1] - 1) // CHUNK
        places = zip(self._numbers, self._starts, strict=True)
        rows = [self._table.look_up(number, start, count) for number, start in places]
        return np.stack(rows) if rows else np.empty((0, count), dtype=np.int64)

    @cached_property
    def loss_mask(self) -> NDArray[np.bool_]:
        width = self.tokens.shape[1]
        mask = np.ones((len(self.tokens), width - 1), dtype=np.bool_)
        for row, (views, start) in enumerate(zip(self._views, self._starts, strict=True)):
            if views.loss_mask is not None:
                np.not_equal(views.loss_mask[start + 1 : start + width], 0, out=mask[row])
        rows, columns = self._begins
        mask[rows, columns - 1] = False
        return mask
