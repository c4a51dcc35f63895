"""Finds ranks that compute slower than the others and so slow down the whole run."""

import socket
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from training.distributed.topology import Topology

EVERY = 20  # steps between two comparisons
LEAST = 0.002  # seconds a step; shorter times are too close to the clock's resolution to compare


class StragglerDetector:
    """Measures this rank's forward passes, the only part of a step that does not wait for gradients of other ranks.

    factor: a rank is slow when it takes more than this times the median of the others.
    """

    def __init__(self, module: nn.Module, topology: Topology, factor: float) -> None:
        self.topology, self.factor = topology, factor
        self._cuda = topology.device.type == "cuda"
        self._seconds, self._steps, self._started = 0.0, 0, 0.0
        self._events: list[tuple[Any, Any]] = []
        self._handles = [module.register_forward_pre_hook(self._begin), module.register_forward_hook(self._end)]

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        if self._cuda:
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            pair[0].record()
            self._events.append(pair)
        self._started = time.perf_counter()

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._cuda:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._started

    def compare_ranks(self) -> str:
        """Return a sentence that names the slow ranks, every `EVERY` steps; empty otherwise. Collective."""
        self._steps += 1
        if self._steps < EVERY:
            return ""
        if self._events:
            torch.cuda.synchronize()
            self._seconds = sum(first.elapsed_time(last) for first, last in self._events) / 1e3
            self._events.clear()
        own = (self.topology.mesh.get_local_rank("pipeline"), self._seconds / self._steps, socket.gethostname())
        self._seconds, self._steps = 0.0, 0
        everywhere: list[Any] = [None] * self.topology.info.world_size
        dist.all_gather_object(everywhere, own)
        stages, seconds, hosts = zip(*everywhere, strict=True)
        slow = slow_ranks(seconds, stages, self.factor)
        return "; ".join(
            f"rank {rank} on {hosts[rank]} takes {ratio:.1f} x the others' time to compute "
            f"({1e3 * seconds[rank]:.0f} ms a step): look there for other programs, overheating or a broken device"
            for rank, ratio in slow
        )

    def close(self) -> None:
        """Remove the hooks from the module."""
        for handle in self._handles:
            handle.remove()


def slow_ranks(seconds: Sequence[float], stages: Sequence[int], factor: float) -> list[tuple[int, float]]:
    """Return (rank, ratio) of the ranks slower than `factor` x the median of the other ranks of their stage.

    seconds, stages: compute time a step and pipeline stage of each rank; ratio: own time over that median.
    """
    found = []
    for rank, own in enumerate(seconds):
        others = [s for i, s in enumerate(seconds) if i != rank and stages[i] == stages[rank]]
        usual = max(LEAST, statistics.median(others)) if others else own
        if usual and own > factor * usual:
            found.append((rank, own / usual))
    return found
