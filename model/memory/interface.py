"""The interface between a decoder layer and its memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from model.errors import ModelError
from model.memory.reading import MemoryReading, Tape
from model.segments import SegmentSpan

GATES = ("in", "forget", "out")  # the gates whose mean opening training reports


class Memory(nn.Module, ABC):
    """One decoder layer's memory, of any kind.

    With `ablated` every read finds the initial memory, so that its use can be measured; `ablated_slots` is the same for
    single slots.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ablated = False
        self.ablated_slots: tuple[int, ...] = ()
        self.tape: Tape | None = None
        self._gates: dict[str, tuple[Tensor, int]] = {}
        self._compiled_gates: dict[str, Tensor | None] = dict.fromkeys(GATES)  # a compiled graph cannot add keys

    def record_gate(self, name: str, gate: Tensor) -> None:
        """Add the mean of a gate's values in this forward to the means that `take_gates` returns.

        Raises `ModelError` for a name that is not in `GATES`.
        """
        if name not in GATES:
            raise ModelError(f"record_gate: {name!r} is a gate that training does not report; use {', '.join(GATES)}")
        mean = gate.detach().mean()
        if torch.compiler.is_compiling():
            self._compiled_gates[name] = mean
            return
        self._add_gate(name, mean)
        self.show(f"gate_{name}", gate)

    def gather_gates(self) -> None:
        """Add the means that a compiled graph has left. The decoder layer calls it after each forward."""
        for name, mean in self._compiled_gates.items():
            if mean is not None:
                self._add_gate(name, mean)
                self._compiled_gates[name] = None

    def _add_gate(self, name: str, mean: Tensor) -> None:
        total, count = self._gates.get(name, (0.0, 0))
        self._gates[name] = (total + mean, count + 1)

    def show(self, name: str, x: Tensor) -> None:
        """Append a tensor of the computation to the tape inside `recording`; do nothing elsewhere."""
        if self.tape is not None:
            self.tape.setdefault(name, []).append(x.detach())

    def take_gates(self) -> dict[str, Tensor]:
        """Return each gate's mean, fp32 [], over the forwards since the last call, and start anew."""
        means = {name: total / count for name, (total, count) in self._gates.items()}
        self._gates = {}
        return means

    def reading(self, tape: Tape) -> MemoryReading:
        """Return what this memory read and wrote over one document (B = 1), from the tape of the calls on it.

        Raises `ModelError` for a kind without this method.
        """
        raise ModelError(
            f"{type(self).__name__} keeps nothing of its reads: it has no method `reading`, so it cannot be interpreted"
        )

    def used_outside_forward(self) -> Iterable[nn.Parameter]:
        """Return the parameters that are read outside the `forward` of this module and of the modules below it.

        ZeRO 3 must be told of them, because it gathers a parameter only while its module's `forward` runs.
        """
        return ()

    @abstractmethod
    def initial_state(self, hidden: Tensor) -> Any:
        """Return the state before the first token, on the device of `hidden` [B, L, D]."""

    @abstractmethod
    def initial_value(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return initial fp32 values, of `shape`, for a part of the parameter `name`: whole rows, or a part of one row.

        `generator` is in the state where the part begins. A rank draws its own part of a weight alone, so the values
        must be constant over the parameter, or follow from one `torch.randn` of this shape.
        """

    def drawn_as(self, name: str) -> str:
        """Return the name of the parameter whose seed initialises `name`.

        Override it to give two parameters equal initial weights (query and key).
        """
        return name


class RecurrentMemory(Memory):
    """A memory that runs beside the feed-forward and computes all segments of a span at once.

    It reads before it writes: a segment's tokens see what earlier segments of their own document wrote.
    """

    @abstractmethod
    def forward(self, h: Tensor, span: SegmentSpan, state: Any) -> tuple[Tensor, Any]:
        """Read and write the memory for a span's tokens h [B, n, D], which are in the tensor-parallel region.

        Returns this rank's partial output [B, n, D] (exactly zero when freshly initialised) and the next state.
        """


def memories(module: nn.Module) -> list[Memory]:
    """Return all memory modules below `module`, in order of depth."""
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
    """Return bool [N], True = the slot is ablated in any of these memories; None: no slot is ablated."""
    lost = {n for m in found for n in (range(num_slots) if m.ablated else m.ablated_slots)}
    if not lost:
        return None
    return torch.isin(torch.arange(num_slots, device=device), torch.tensor(sorted(lost), device=device))


@contextmanager
def recording(module: nn.Module) -> Iterator[list[Tape]]:
    """Record the tensors that the memories below `module` `show` inside the context.

    Yields a tape for each memory, in order of depth; a tape has, by name, one tensor for each call. Its shape
    depends on the kind and the name; `lm2` through time shows its keys as [B, S, H, T, N].
    """
    found = memories(module)
    tapes: list[Tape] = [{} for _ in found]
    try:
        for memory, tape in zip(found, tapes, strict=True):
            memory.tape = tape
        yield tapes
    finally:
        for memory in found:
            memory.tape = None
