"""Tensor parallelism with megatron-core's sharded weights (`model/megatron.py`).

megatron-core allocates the shards and provides the copy/reduce mappings. The matrix products here are plain ones on the
local shard. So all column-parallel products of a block share one copy into the region, all row-parallel ones one
all-reduce, and a single process needs no process group.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from model.linear import linear
from model.megatron import ColumnWeight, RowWeight, TableWeight, copy_to_region, reduce_from_region

_SEPARATE_ROWS = 256  # with fewer rows one product is faster (widths of 64 to 1,024, one thread of an AMD EPYC)


@dataclass(frozen=True)
class TensorParallel:
    """The tensor-parallel group of a model; group None: one rank without process group.

    sequence: Megatron's sequence parallelism (arXiv 2205.05198). Outside the regions of parallel products each rank
    keeps only its own tokens, [B, L/tp, D], so that norms and residuals are not computed and kept tp times.
    """

    group: dist.ProcessGroup | None = None
    sequence: bool = False

    @property
    def size(self) -> int:
        return 1 if self.group is None else self.group.size()

    @property
    def rank(self) -> int:
        return 0 if self.group is None else self.group.rank()

    def copy(self, x: Tensor) -> Tensor:
        """Enter a region of column-parallel products: identity forward, all-reduce backward. Collective."""
        return x if self.size == 1 else copy_to_region(x, self.group)

    def reduce(self, partial: Tensor) -> Tensor:
        """Leave a region of row-parallel products: all-reduce forward, identity backward. Collective."""
        if self.size == 1:
            return partial
        # contiguous, because megatron-core would reduce a copy of any other tensor and return the unreduced one
        return reduce_from_region(partial.contiguous(), self.group)

    def enter(self, x: Tensor) -> Tensor:
        """Bring the residual stream into a region of column-parallel products. Collective.

        [B, L, D], or with `sequence` [B, L/tp, D] -> [B, L, D], whole on every rank; the gradient is summed over the
        ranks.
        """
        return _GatherTokens.apply(x, self) if self.sequence and self.size > 1 else self.copy(x)

    def leave(self, partial: Tensor) -> Tensor:
        """Sum partial [B, L, D] over the ranks into the residual stream: [B, L, D] or [B, L/tp, D]. Collective."""
        return _ScatterTokens.apply(partial, self) if self.sequence and self.size > 1 else self.reduce(partial)

    def for_own_tokens(self, weight: Tensor) -> Tensor:
        """Return a replicated weight for the residual stream; with `sequence` its gradient is summed over the ranks."""
        return self.copy(weight) if self.sequence else weight

    def gather(self, x: Tensor) -> Tensor:
        """Gather [..., D/tp] of every rank into [..., D] on each. Collective.

        The backward pass keeps this rank's slice of the gradient, so all ranks must compute the same with the result.
        megatron-core's gather needs CUDA.
        """
        return x if self.size == 1 else _Gather.apply(x, self)

    def shard(self, full: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return this rank's slice of the whole weight `full`, split as `parameter` is."""
        if self.size == 1 or not is_sharded(parameter):
            return full
        return full.chunk(self.size, dim=parameter.partition_dim)[self.rank]  # type: ignore[attr-defined]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: TensorParallel) -> Tensor:
        ctx.tp = tp
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(tp.size)]
        dist.all_gather(parts, x.contiguous(), group=tp.group)
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.chunk(ctx.tp.size, dim=-1)[ctx.tp.rank].contiguous(), None


class _GatherTokens(torch.autograd.Function):
    """[B, L/tp, D] -> [B, L, D]; the gradient is reduce-scattered. megatron-core's version needs CUDA."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: TensorParallel) -> Tensor:
        ctx.tp = tp
        return _gather_tokens(x, tp)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _scatter_tokens(gradient, ctx.tp), None


class _ScatterTokens(torch.autograd.Function):
    """[B, L, D] partial sums -> [B, L/tp, D]; the gradient is gathered."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, tp: TensorParallel) -> Tensor:
        ctx.tp = tp
        return _scatter_tokens(partial, tp)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _gather_tokens(gradient, ctx.tp), None


def _gather_tokens(x: Tensor, tp: TensorParallel) -> Tensor:
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(tp.size)]
    dist.all_gather(parts, x.contiguous(), group=tp.group)
    return torch.cat(parts, dim=1)


def _scatter_tokens(x: Tensor, tp: TensorParallel) -> Tensor:
    parts = [part.contiguous() for part in x.chunk(tp.size, dim=1)]
    own = torch.empty_like(parts[tp.rank])
    dist.reduce_scatter(own, parts, group=tp.group)
    return own


class RMSNorm(nn.RMSNorm):
    """RMSNorm of this rank's part of the residual stream."""

    def __init__(self, size: int, eps: float, tp: TensorParallel) -> None:
        super().__init__(size, eps=eps)
        self.tp = tp

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.tp.for_own_tokens(self.weight), self.eps)


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether the parameter is split over the tensor-parallel group; others are replicated."""
    return bool(getattr(parameter, "tensor_model_parallel", False))


def sharded_parameter(shape: tuple[int, ...], tp: TensorParallel) -> nn.Parameter:
    """Return an uninitialised parameter that is split over its first dimension; shape: of the whole parameter."""
    assert shape[0] % tp.size == 0, f"{shape[0]} rows over {tp.size} ranks"
    parameter = nn.Parameter(torch.empty(shape[0] // tp.size, *shape[1:]))
    parameter.tensor_model_parallel, parameter.partition_dim, parameter.partition_stride = True, 0, 1  # type: ignore[attr-defined]
    return parameter


class ColumnParallel(ColumnWeight):
    """Weight [out, in] split by rows; maps x [..., in], copied into the region, to this rank's [..., out/tp]."""

    def __init__(self, in_size: int, out_size: int, tp: TensorParallel) -> None:
        super().__init__(in_size, out_size, tp.group)
        _mark(self.weight, 0)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return linear(x, self.weight)


class InterleavedColumnParallel(ColumnParallel):
    """Several linear maps of one input, whose weights lie in one weight [N * sum(parts) * width, in].

    The rows are ordered [N, sum(parts), width], so that a split by rows over the tensor-parallel ranks gives each rank
    the same share of every map. Of the N groups, map i has `parts[i]` blocks of `width` rows each. On a CPU, autograd
    also keeps a copy of each map's weight for the backward pass.
    """

    def __init__(self, in_size: int, groups: int, parts: tuple[int, ...], width: int, tp: TensorParallel) -> None:
        super().__init__(in_size, groups * sum(parts) * width, tp)
        self.parts, self.width = parts, width

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Map x [B, L, in] to a tensor [B, L, N/tp, part, width] for each part."""
        shape = (-1, sum(self.parts), self.width)
        if x.device.type != "cpu" or x.shape[:-1].numel() < _SEPARATE_ROWS or torch.compiler.is_compiling():
            return super().forward(x).unflatten(-1, shape).split(self.parts, dim=-2)
        # One product's parts lie between each other; on a CPU passes over them cost more than products of their own.
        weights = self.weight.unflatten(0, shape).split(self.parts, dim=1)
        return tuple(
            linear(x, weight.flatten(0, 2).contiguous()).unflatten(-1, (-1, part, self.width))
            for weight, part in zip(weights, self.parts, strict=True)
        )


class RowParallel(RowWeight):
    """Weight [out, in] split by columns; maps [..., in/tp] to this rank's partial [..., out], which the caller sums."""

    def __init__(self, in_size: int, out_size: int, tp: TensorParallel) -> None:
        super().__init__(in_size, out_size, tp.group)
        _mark(self.weight, 1)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return linear(x, self.weight)


class VocabParallel(TableWeight):
    """Weight [V, D] split by rows over the vocabulary, used as embedding, as output head, or as both (tied)."""

    def __init__(self, vocab_size: int, hidden_size: int, tp: TensorParallel) -> None:
        super().__init__(vocab_size, hidden_size, tp.group)
        self.tp = tp
        _mark(self.weight, 0)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids int64 [B, L] -> [B, L, D], or with `sequence` this rank's [B, L/tp, D]. Collective."""
        if self.tp.size == 1:
            return F.embedding(ids, self.weight)
        outside = (ids < self.vocab_start_index) | (ids >= self.vocab_end_index)
        local = F.embedding((ids - self.vocab_start_index).masked_fill(outside, 0), self.weight)
        return self.tp.leave(local.masked_fill(outside.unsqueeze(-1), 0.0))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return this rank's logits [B, L, V/tp] of the normalised residual stream. Collective with `sequence`."""
        return linear(self.tp.enter(hidden), self.weight)


def _mark(weight: nn.Parameter, dim: int) -> None:
    # megatron-core marks shards while it initialises them, and this project initialises them itself
    weight.tensor_model_parallel, weight.partition_dim, weight.partition_stride = True, dim, 1  # type: ignore[attr-defined]
