"""Copies of a rank's share of a checkpoint, made while the next forward and backward run.

Only the optimizer step changes weights and moments. So training goes on at once, and only the next optimizer step waits
for the copies, which are normally finished long before.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A range of a flattened tensor that this rank writes.

    key: name of the tensor; shape: its shape on this tensor-parallel rank; start: first element of the range; values:
    [n], the optimizer's own memory, valid until its next step; sharded_dim: the dimension that tensor-parallel ranks
    share evenly, None for none.
    """

    key: str
    shape: torch.Size
    start: int
    values: Tensor
    sharded_dim: int | None


class Staging:
    """Copies this rank's share to CPU memory, into the same buffers every time, so that only one share is held."""

    def __init__(self, device: torch.device) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self) -> None:
        """Make the copy stream wait for what the calling (training) thread has computed until now."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def copy(self, parts: list[Part]) -> list[Tensor]:
        """Return a copy of every part's values in CPU memory; buffers of tensors that are not in `parts` are freed.

        It may run in any thread, after `begin`.
        """
        with torch.cuda.stream(self._stream):  # type: ignore[arg-type]  # None: no stream, on a CPU
            self._buffers = {part.key: self._buffer(part) for part in parts}
            for part in parts:
                self._buffers[part.key].copy_(part.values, non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()
        return [self._buffers[part.key] for part in parts]

    def _buffer(self, part: Part) -> Tensor:
        """Return the buffer of the part's tensor, a new one when its size or dtype has changed."""
        values, found = part.values, self._buffers.get(part.key)
        if found is not None and found.numel() == values.numel() and found.dtype == values.dtype:
            return found
        return torch.empty(values.numel(), dtype=values.dtype, pin_memory=self._stream is not None)
