"""What `generate` carries between its steps: our streams' states."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.state import StreamState


@dataclass(frozen=True)
class Streams:
    """Rows of the batch that have read equally many tokens, and so share a state.

    rows: int64 [n] places in the batch; padding: columns on the left that they do not read; state: None, not begun.
    """

    rows: Tensor
    padding: int
    state: StreamState | None


class MemtrainCache:
    """Memory, and keys and values of the open segments: constant in size, whatever has been read.

    It cannot go back: what a memory has read cannot be taken out again, so `crop` (assisted generation) is refused.
    """

    is_compileable = False

    def __init__(self, streams: list[Streams]) -> None:
        self.streams = streams
        self.length = 0  # columns of the batch read so far, padding included

    @classmethod
    def begin(cls, batch: int, mask: Tensor | None, device: torch.device) -> "MemtrainCache":
        """Before the first token. mask: int or bool [B, L], 0 for padding on the left; None: no padding."""
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
        """Row i of the batch becomes what row `indices[i]` was."""
        chosen = []
        for old in self.streams:
            matches = indices.to(old.rows.device).unsqueeze(1) == old.rows  # [new rows, old rows of these streams]
            rows, places = matches.nonzero(as_tuple=True)
            if len(rows):
                chosen.append(Streams(rows, old.padding, old.state.select(places) if old.state else None))
        self.streams = chosen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: the same as `batch_select_indices`."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(self.batch_size, device=self.streams[0].rows.device)
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def crop(self, max_length: int) -> None:
        raise ValueError("a memory cannot forget its last tokens: use generate without assistant or prompt look-up")
