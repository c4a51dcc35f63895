"""A rank's share of a checkpoint, copied beside the forward and backward after it.

Weights and moments change in the optimizer's step and nowhere else.  So training goes on at once, and only that step
waits until the copies are made, which is long before it comes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Elements from `start` on of the flattened tensor `key`, whose shape is `shape` on this tensor-parallel rank.

    values: the optimizer's own memory until its next step.  sharded_dim: what tensor-parallel ranks share evenly.
    """

    key: str
    shape: torch.Size
    start: int
    values: Tensor
    sharded_dim: int | None


class Staging:
    """Copies of this rank's share in CPU memory, in the same memory every time: one share is all it ever takes."""

    def __init__(self, device: torch.device) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self) -> None:
        """In the training thread: what is copied is what this thread has computed until now."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def copy(self, parts: list[Part]) -> list[Tensor]:
        """Every part's values, in any thread; the memory of what was copied before and is gone is freed."""
        with torch.cuda.stream(self._stream):  # type: ignore[arg-type]  # None: no stream, on a CPU
            self._buffers = {part.key: self._buffer(part) for part in parts}
            for part in parts:
                self._buffers[part.key].copy_(part.values, non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()
        return [self._buffers[part.key] for part in parts]

    def _buffer(self, part: Part) -> Tensor:
        """Memory for its values: as before, or new."""
        values, found = part.values, self._buffers.get(part.key)
        if found is not None and found.numel() == values.numel() and found.dtype == values.dtype:
            return found
        return torch.empty(values.numel(), dtype=values.dtype, pin_memory=self._stream is not None)
