"""A batch of the stream: its tokens, and document numbers and loss mask, which are computed on first use."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data_prep.references.neighbours import CHUNK, NeighbourTable
from data_prep.shards.reading import Shard, Tokens


class Batch:
    """B samples of L + 1 tokens: inputs are tokens[:, :-1], targets tokens[:, 1:].

    tokens: uint16 or uint32 [B, L + 1], the shards' own type; who needs a wider type converts them.
    document_ids: int32 [B, L + 1]; 0, 1, 2, ... by document within the sample.
    loss_mask: bool [B, L]; False at t where tokens[t + 1] belongs to another document than tokens[t], or where the
        shard's own mask says that tokens[t + 1] is not to be learned.
    neighbours: int64 [B, U], U = L / 64; the reference that the tokens of chunk u (tokens[:, 64 u : 64 u + 64])
        retrieved, -1: none; None: the stream has no table. They are not shifted: a causal model must give chunk u the
        reference that chunk u - 1 retrieved.

    The last three are computed on first use, because they cost more than copying the tokens.
    """

    def __init__(
        self,
        tokens: Tokens,
        shards: Sequence[Shard],
        starts: Sequence[int],
        table: NeighbourTable | None = None,
        numbers: Sequence[int] = (),
    ) -> None:
        """shards, starts: for each sample, its shard and its first token there. numbers: of these shards in `table`."""
        self.tokens = tokens
        self._table, self._numbers = table, numbers
        # Views instead of shards, because they stay readable when a shard is closed.
        self._views = [shard.open() for shard in shards]
        self._starts = starts

    @cached_property
    def _begins(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row, column), int64 [n] each, of the tokens that begin a document, without those that begin a sample."""
        width = self.tokens.shape[1]
        begins = []
        for row, (views, start) in enumerate(zip(self._views, self._starts, strict=True)):
            first, last = views.offsets.searchsorted((start + 1, start + width)).tolist()
            if first < last:
                begins.append(views.offsets[first:last] + (row * width - start))
        flat = np.concatenate(begins) if begins else np.empty(0, dtype=np.int64)
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
