"""The part of a checkpoint that one rank writes: boxes of tensors, without gathering anything.

ZeRO gives every data-parallel rank a range of each flattened tensor. Such a range is a few boxes of the tensor itself
(a part of a row, whole rows, a part of a row). torch.distributed.checkpoint (DCP) stores a box with its offsets in the
whole tensor, which do not depend on the topology. So no rank ever holds more than its own share.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType


@dataclass(frozen=True)
class TensorShard:
    """A box of the tensor `key`.

    size: shape of the whole tensor; offsets: where the box begins in it; values: the box, with as many dimensions.
    """

    key: str
    size: torch.Size
    offsets: torch.Size
    values: Tensor


def boxes_of_range(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield (offsets, sizes) of the boxes that cover elements [start, stop) of a row-major tensor, in memory order."""
    if start >= stop:
        return
    if len(shape) < 2:
        yield ((start,), (stop - start,)) if shape else ((), ())
        return
    inner = shape[1:]
    row = math.prod(inner)
    first, last = -(-start // row), stop // row  # the whole rows are [first, last)
    if first > last:  # the range begins and ends inside one row
        yield from _in_row(last, inner, start - last * row, stop - last * row)
        return
    yield from _in_row(first - 1, inner, start - (first - 1) * row, row if start < first * row else 0)
    if first < last:
        yield (first, *(0 for _ in inner)), (last - first, *inner)
    yield from _in_row(last, inner, 0, stop - last * row)


def _in_row(
    row: int, inner: tuple[int, ...], start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for offsets, sizes in boxes_of_range(inner, start, stop):
        yield (row, *offsets), (1, *sizes)


def boxes(
    key: str, shape: tuple[int, ...], start: int, values: Tensor, sharded_dim: int | None, rank: int, ranks: int
) -> Iterator[TensorShard]:
    """Yield the boxes of the whole tensor `key` that `values` fills.

    Args:
        key: name of the tensor.
        shape: shape of the tensor on this tensor-parallel rank.
        start: index of the first element of `values` in the flattened tensor of this rank.
        values: [n], consecutive elements; the boxes are views of it.
        sharded_dim: the dimension that tensor-parallel ranks share evenly; None: not shared.
        rank: this tensor-parallel rank.
        ranks: number of tensor-parallel ranks.
    """
    size, shift = list(shape), [0] * len(shape)
    if sharded_dim is not None:
        size[sharded_dim], shift[sharded_dim] = shape[sharded_dim] * ranks, shape[sharded_dim] * rank
    done = 0
    for offsets, sizes in boxes_of_range(shape, start, start + values.numel()):
        count = math.prod(sizes)
        place = torch.Size(o + s for o, s in zip(offsets, shift, strict=True))
        yield TensorShard(key, torch.Size(size), place, values[done : done + count].view(sizes))
        done += count


class SharePlanner(DefaultSavePlanner):
    """DCP's save planner for boxes; a box that several ranks have is written once."""

    def __init__(self, share: list[TensorShard]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._share = {(box.key, box.offsets): box for box in share}

    def create_local_plan(self) -> SavePlan:
        """Return the list of boxes that this rank writes."""
        self.plan = SavePlan([_write_item(box) for box in self._share.values()])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Any:
        """Return the values of the box at `index`."""
        assert index.offset is not None
        return _with_own_storage(self._share[index.fqn, index.offset].values)


def _with_own_storage(values: Tensor) -> Tensor:
    """Return a tensor with its own storage over the same memory; DCP would copy a view."""
    own = torch.from_numpy(values.reshape(-1).view(torch.uint8).numpy())
    return own.view(values.dtype).view(values.shape)


def _write_item(box: TensorShard) -> WriteItem:
    chunk = ChunkStorageMetadata(box.offsets, box.values.size())
    data = TensorWriteData(chunk, TensorProperties.create_from_tensor(box.values), box.size)
    return WriteItem(MetadataIndex(box.key, box.offsets), WriteItemType.SHARD, tensor_data=data)
