"""What every recurrent memory offers the decoder layer."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from model.segments import Piece


class RecurrentMemory(nn.Module, ABC):
    """Reads before it writes: tokens of a segment see what earlier segments of their own document left.

    `gate_means` holds the means of the gates in the last forward, for the log.  `wiped` makes every read find the
    initial memory, which is how its use is measured.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate_means: dict[str, Tensor] = {}
        self.wiped = False

    @abstractmethod
    def initial_state(self, hidden: Tensor) -> Any:
        """The state before the first token, on the device of `hidden` [B, L, D]."""

    @abstractmethod
    def forward(self, h: Tensor, piece: Piece, state: Any) -> tuple[Tensor, Any]:
        """h [B, n, D], normalised and copied into the tensor-parallel region.

        Returns this rank's partial output [B, n, D] (exactly zero when freshly initialised) and the next state.
        """

    @abstractmethod
    def initial_value(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """The whole (unsharded) initial fp32 value of the module's parameter `name`."""


def memories(module: nn.Module) -> list[RecurrentMemory]:
    """All memory modules below `module`, in order of depth."""
    return [m for m in module.modules() if isinstance(m, RecurrentMemory)]


@contextmanager
def wiped(module: nn.Module) -> Iterator[None]:
    """Inside the context every read below `module` finds the initial memory."""
    found = memories(module)
    try:
        for memory in found:
            memory.wiped = True
        yield
    finally:
        for memory in found:
            memory.wiped = False
