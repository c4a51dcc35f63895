"""Replaces `model/megatron.py` in exported folders, which run in a single process: the same weights in plain torch."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["ColumnWeight", "RowWeight", "TableWeight", "copy_to_region", "reduce_from_region"]


class _Weight(nn.Module):
    """`weight` [rows, columns], uninitialised."""

    def __init__(self, rows: int, columns: int, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        if group is not None:
            raise RuntimeError("an exported model runs on one rank: it has no tensor parallelism")
        self.weight = nn.Parameter(torch.empty(rows, columns))


class ColumnWeight(_Weight):
    """The weight of a linear layer, [out, in]."""

    def __init__(self, in_size: int, out_size: int, group: dist.ProcessGroup | None) -> None:
        super().__init__(out_size, in_size, group)


class RowWeight(ColumnWeight):
    """The weight of a linear layer, [out, in]."""


class TableWeight(_Weight):
    """The embedding table, [V, D]."""


def copy_to_region(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Raise `RuntimeError`: there is no group to copy to."""
    raise RuntimeError("an exported model runs on one rank: it has no tensor parallelism")


reduce_from_region = copy_to_region
