"""What every recurrent memory offers the decoder layer."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from model.errors import ModelError
from model.memory.reading import MemoryReading, Tape
from model.segments import SegmentSpan

GATES = ("in", "forget", "out")


class Memory(nn.Module, ABC):
    """One decoder layer's memory, of any kind.

    `ablated` makes every read find the initial memory, which is how its use is measured; `ablated_slots` the same for
    single slots.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ablated = False
        self.ablated_slots: tuple[int, ...] = ()
        self.tape: Tape | None = None
        self._gates: dict[str, tuple[Tensor, int]] = {}
        self._compiled_gates: dict[str, Tensor | None] = dict.fromkeys(GATES)  # a compiled graph may add no key

    def record_gate(self, name: str, gate: Tensor) -> None:
        """Add a gate's mean opening in this forward to what the log will show."""
        mean = gate.detach().mean()
        if torch.compiler.is_compiling():
            self._compiled_gates[name] = mean
            return
        self._add_gate(name, mean)
        self.show(f"gate_{name}", gate)

    def gather_gates(self) -> None:
        """After each forward: add what a compiled graph has left."""
        for name, mean in self._compiled_gates.items():
            if mean is not None:
                self._add_gate(name, mean)
                self._compiled_gates[name] = None

    def _add_gate(self, name: str, mean: Tensor) -> None:
        total, count = self._gates.get(name, (0.0, 0))
        self._gates[name] = (total + mean, count + 1)

    def show(self, name: str, x: Tensor) -> None:
        """Keep a tensor of the computation for whoever is `recording`; otherwise nothing."""
        if self.tape is not None:
            self.tape.setdefault(name, []).append(x.detach())

    def take_gates(self) -> dict[str, Tensor]:
        """Mean opening of each gate over the forwards since the last call."""
        means = {name: total / count for name, (total, count) in self._gates.items()}
        self._gates = {}
        return means

    def reading(self, tape: Tape) -> MemoryReading:
        """What this memory read and wrote over one document (B = 1), from its tape of that call.

        Raises `ModelError` for a kind that does not say.
        """
        raise ModelError(
            f"{type(self).__name__} keeps nothing of its reads: it has no method `reading`, so it cannot be interpreted"
        )

    def used_outside_forward(self) -> Iterable[nn.Parameter]:
        """Parameters that are read while neither this module's `forward` nor that of a module below it runs."""
        return ()

    @abstractmethod
    def initial_state(self, hidden: Tensor) -> Any:
        """The state before the first token, on the device of `hidden` [B, L, D]."""

    @abstractmethod
    def initial_value(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Initial fp32 values, of `shape`, for a part of the parameter `name`: consecutive rows, or a part of one row.

        `generator` stands where the part begins. Each number must be constant in the parameter, or follow from
        `torch.randn` of this shape alone: a rank draws no other rank's part of a weight.
        """

    def drawn_as(self, name: str) -> str:
        """The parameter whose random numbers `name` begins with: itself, unless a kind wants two to begin alike."""
        return name


class RecurrentMemory(Memory):
    """Beside the feed-forward.  Reads before it writes: tokens of a segment see what earlier segments of their own
    document left, so that all segments of a span are computed at once."""

    @abstractmethod
    def forward(self, h: Tensor, span: SegmentSpan, state: Any) -> tuple[Tensor, Any]:
        """h [B, n, D], normalised and copied into the tensor-parallel region.

        Returns this rank's partial output [B, n, D] (exactly zero when freshly initialised) and the next state.
        """


def memories(module: nn.Module) -> list[Memory]:
    """All memory modules below `module`, in order of depth."""
    return [m for m in module.modules() if isinstance(m, Memory)]


@contextmanager
def ablated(module: nn.Module, slots: Sequence[int] | None = None) -> Iterator[None]:
    """Inside the context every read below `module` finds the initial memory (only in `slots`, when they are given)."""
    found = memories(module)
    try:
        for memory in found:
            memory.ablated, memory.ablated_slots = slots is None, tuple(slots or ())
        yield
    finally:
        for memory in found:
            memory.ablated, memory.ablated_slots = False, ()


def lost_slots(found: Iterable[Memory], num_slots: int, device: torch.device) -> Tensor | None:
    """bool [N], True = ablated in any of these memories; None: nothing is ablated."""
    lost = {n for m in found for n in (range(num_slots) if m.ablated else m.ablated_slots)}
    if not lost:
        return None
    return torch.isin(torch.arange(num_slots, device=device), torch.tensor(sorted(lost), device=device))


@contextmanager
def recording(module: nn.Module) -> Iterator[list[Tape]]:
    """What the memories below `module` compute inside the context, by name: a tape a memory, in order of depth, an
    entry a call.  Each kind's file says what it shows."""
    found = memories(module)
    tapes: list[Tape] = [{} for _ in found]
    try:
        for memory, tape in zip(found, tapes, strict=True):
            memory.tape = tape
        yield tapes
    finally:
        for memory in found:
            memory.tape = None
