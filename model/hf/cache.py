"""The cache that Transformers' `generate` carries between its steps. It holds the streams' states."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.state import StreamState


@dataclass(frozen=True)
class Streams:
    """Rows of the batch that have read equally many tokens, so that one state holds them.

    rows: int64 [n], their places in the batch; padding: columns on the left that they skip; state: None before the
    first token.
    """

    rows: Tensor
    padding: int
    state: StreamState | None


class MemtrainCache:
    """The memories, and the keys and values of the open segments. Its size does not depend on how much was read.

    Tokens cannot be removed from a memory, so `crop`, which assisted generation calls, raises `ValueError`.
    """

    is_compileable = False

    def __init__(self, streams: list[Streams]) -> None:
        self.streams = streams
        self.length = 0  # columns of the batch read so far, padding included

    @classmethod
    def begin(cls, batch: int, mask: Tensor | None, device: torch.device) -> "MemtrainCache":
        """Return the cache before the first token. mask: [B, L], 0 = padding on the left; None: no padding."""
        if mask is None:
            return cls([Streams(torch.arange(batch, device=device), 0, None)])
        padding = mask.size(1) - mask.bool().sum(dim=1)
        groups = [(int(p), (padding == p).nonzero().squeeze(1)) for p in padding.unique()]
        return cls([Streams(rows.to(device), p, None) for p, rows in groups])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return -1  # there is no limit

    @property
    def batch_size(self) -> int:
        return sum(len(streams.rows) for streams in self.streams)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Make row i of the batch what row `indices[i]` was; indices: int64 [n]."""
        chosen = []
        for old in self.streams:
            matches = indices.to(old.rows.device).unsqueeze(1) == old.rows  # [new rows, old rows of these streams]
            rows, places = matches.nonzero(as_tuple=True)
            if len(rows):
                chosen.append(Streams(rows, old.padding, old.state.select(places) if old.state else None))
        self.streams = chosen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Do what `batch_select_indices` does, under the name that beam search calls."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(self.batch_size, device=self.streams[0].rows.device)
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def crop(self, max_length: int) -> None:
        raise ValueError(
            "crop: tokens cannot be removed from a memory; use generate without assistant or prompt look-up"
        )
