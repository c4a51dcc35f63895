"""What a layer knows of parallelism: the group that shares it, the group that shares a sample, what is recomputed."""

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
    """Ranks that own consecutive segments of one sample; group None: one rank without process group.

    Attention stays inside a segment, so a rank sends only the memory's bank to the next, and receives its gradient. The
    number of bytes does not depend on the number of segments.
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
        """Send x to the rank `ahead` places after this one (-1: the one before), which must call `receive`."""
        dist.send(x.contiguous(), group=self.group, group_dst=self.rank + ahead)

    def receive(self, like: Tensor, ahead: int) -> Tensor:
        """Receive a tensor shaped like `like` from the rank `ahead` places after this one (-1: the one before)."""
        x = torch.empty_like(like, memory_format=torch.contiguous_format)
        dist.recv(x, group=self.group, group_src=self.rank + ahead)
        return x


@dataclass(frozen=True)
class ParallelContext:
    """Everything a layer must know about the other ranks. The default is one process without process groups.

    recompute: what the backward pass computes again to save memory: `selective` attention without its projections, and
    the memory; `full` whole decoder layers.
    """

    tensor: TensorParallel = field(default_factory=TensorParallel)
    segments: SegmentParallel = field(default_factory=SegmentParallel)
    recompute: Recompute = "none"

    def inner(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a part of a layer, which `selective` recomputes in the backward pass."""
        return _run(self.recompute == "selective", function, arguments)

    def layer(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a layer, which `full` recomputes in the backward pass."""
        return _run(self.recompute == "full", function, arguments)


def _run(recomputed: bool, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if recomputed and torch.is_grad_enabled():
        # layers draw no random numbers, so their state need not be kept
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return function(*arguments)
