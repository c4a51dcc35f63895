"""Pack short documents into rows of one length, so that no sample cuts a document."""

from collections.abc import Sequence

import numpy as np

from data_prep.shards.reading import Mask, Tokens
from data_prep.shards.writer import ShardWriter

_TOGETHER = 1024  # documents that are packed together: more of them fill rows better, but use more memory


class PackedWriter:
    """Gives a `ShardWriter` rows of exactly `length` tokens, filled by first-fit, the longest document first.

    The free end of a row becomes a document of eos tokens that are not learned. With samples of `length` tokens, each
    sample is one row.
    """

    def __init__(self, writer: ShardWriter, length: int, eos_id: int) -> None:
        self._writer, self._length, self._eos_id = writer, length, eos_id
        self._waiting: list[tuple[Tokens, Mask, int]] = []
        self.filling = 0  # tokens of padding

    def add(self, tokens: Tokens, loss_mask: Mask | None, identity: int) -> None:
        """Appends a document of at most `length` tokens; see `ShardWriter.add`."""
        assert len(tokens) <= self._length
        mask = np.ones(len(tokens), dtype=np.uint8) if loss_mask is None else loss_mask
        self._waiting.append((tokens, mask, identity))
        if len(self._waiting) == _TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Packs and writes the documents that are waiting."""
        lengths = [len(tokens) for tokens, _, _ in self._waiting]
        for row in pack(lengths, self._length):
            self._write([self._waiting[member] for member in row])
        self._waiting = []

    def _write(self, row: list[tuple[Tokens, Mask, int]]) -> None:
        used = sum(len(tokens) for tokens, _, _ in row)
        free = self._length - used
        self.filling += free
        tokens = np.concatenate([*(tokens for tokens, _, _ in row), np.full(free, self._eos_id, row[0][0].dtype)])
        mask = np.concatenate([*(mask for _, mask, _ in row), np.zeros(free, np.uint8)])
        ends = np.cumsum([len(tokens) for tokens, _, _ in row]).tolist()
        identities = [identity for _, _, identity in row]
        if free:
            ends.append(self._length)
            identities.append(0)
        self._writer.add(tokens, mask, ends, identities)


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Returns rows of indices of `lengths`, each row's lengths at most `capacity` in sum, by first-fit decreasing."""
    rows: list[list[int]] = []
    free: list[int] = []
    for member in sorted(range(len(lengths)), key=lambda member: -lengths[member]):
        for row, room in enumerate(free):
            if lengths[member] <= room:
                rows[row].append(member)
                free[row] -= lengths[member]
                break
        else:
            rows.append([member])
            free.append(capacity - lengths[member])
    return rows
