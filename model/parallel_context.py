"""How a model lies on this rank: its share of every layer, its share of a sample's segments, what it recomputes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model.parallel import TensorParallel

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class SegmentParallel:
    """Ranks that own consecutive segments of one sample; `group=None` is one rank with nothing initialised.

    Attention stays inside a segment, so all that passes from a rank to the next is a memory's bank, and its gradient
    back: as many bytes whatever the number of segments.
    """

    group: dist.ProcessGroup | None = None

    @property
    def size(self) -> int:
        return 1 if self.group is None else self.group.size()

    @property
    def rank(self) -> int:
        return 0 if self.group is None else self.group.rank()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        return self.rank == self.size - 1

    def send(self, x: Tensor, ahead: int) -> None:
        """To the rank `ahead` places after this one (-1: before)."""
        dist.send(x.contiguous(), group=self.group, group_dst=self.rank + ahead)

    def receive(self, like: Tensor, ahead: int) -> Tensor:
        """What the rank `ahead` places after this one (-1: before) sends, shaped like `like`."""
        x = torch.empty_like(like, memory_format=torch.contiguous_format)
        dist.recv(x, group=self.group, group_src=self.rank + ahead)
        return x


@dataclass(frozen=True)
class ParallelContext:
    """Everything a layer must know about the other ranks. The default is one process with nothing initialised.

    recompute: what the backward pass computes again instead of keeping it: `selective` the attention's core and the
    memory, `full` whole decoder layers.
    """

    tensor: TensorParallel = field(default_factory=TensorParallel)
    segments: SegmentParallel = field(default_factory=SegmentParallel)
    recompute: Recompute = "none"

    def inner(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a part of a layer that `selective` recomputes."""
        return _run(self.recompute == "selective", function, arguments)

    def layer(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a layer, which `full` recomputes."""
        return _run(self.recompute == "full", function, arguments)


def _run(recomputed: bool, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if recomputed and torch.is_grad_enabled():
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)  # nothing is random
    return function(*arguments)
