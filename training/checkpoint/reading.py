"""Reads parts of a checkpoint's tensors: only the bytes that are needed, and without unpickling.

torch.distributed.checkpoint (DCP) finds which stored boxes overlap the requested boxes. Its own reader would then read
each stored box completely. A stored box is a file of `torch.save` inside the rank's file: a zip archive whose record
`data/0` has the values, row-major and uncompressed. So a part of a box can be read from its byte offset.
"""

import math
import os
import struct
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.futures import Future

from training.checkpoint.manifest import DamagedError
from training.checkpoint.safe_reader import SafeReader
from training.checkpoint.shards import TensorShard

BLOCK = 16 << 20  # bytes of the buffer between the file and the target tensor
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip record: signature, length of its name, of its extra field


class BoxPlanner(DefaultLoadPlanner):
    """DCP's load planner for boxes, whose boundaries need not be those with which the tensors were written."""

    def __init__(self, boxes: Iterable[TensorShard]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._boxes: dict[str, list[TensorShard]] = defaultdict(list)
        for box in boxes:
            self._boxes[box.key].append(box)

    def create_local_plan(self) -> LoadPlan:
        """Return the list of reads. Raises `DamagedError` when a tensor is missing or has another shape."""
        items: list[ReadItem] = []
        stored: dict[str, Any] = self.metadata.state_dict_metadata  # type: ignore[union-attr]
        for key, boxes in self._boxes.items():
            if key not in stored or stored[key].size != boxes[0].size:
                found = f"has shape {list(stored[key].size)}" if key in stored else "is missing"
                raise DamagedError(f"{key} {found}, it must have shape {list(boxes[0].size)}")
            chunks = [ChunkStorageMetadata(box.offsets, box.values.size()) for box in boxes]
            found_items = create_read_items_for_chunk_list(key, stored[key], chunks)
            if sum(item.lengths.numel() for item in found_items) != sum(box.values.numel() for box in boxes):
                raise DamagedError(f"{key} is stored only in part")
            items += found_items
        return LoadPlan(items)

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """Return the view of a box's values that `read_item` fills."""
        box = self._boxes[read_item.dest_index.fqn][read_item.dest_index.index or 0]
        return _narrowed(box.values.detach(), read_item.dest_offsets, read_item.lengths)


class BoxReader(SafeReader):
    """DCP's reader for the parts of stored boxes in a plan. Raises `DamagedError` when a file has no such tensor."""

    def set_up_storage_reader(self, metadata: Metadata, *args: Any, **kwargs: Any) -> None:
        super().set_up_storage_reader(metadata, *args, **kwargs)
        self._stored: dict[str, Any] = dict(metadata.state_dict_metadata)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the items of the plan into the planner's tensors; the future is done on return."""
        places: dict[str, list[tuple[_StorageInfo, ReadItem]]] = defaultdict(list)
        for item in plan.items:
            place = self.storage_data[item.storage_index]
            places[place.relative_path].append((place, item))
        for name, found in places.items():
            with (Path(self.path) / name).open("rb", buffering=0) as file:
                for place, item in sorted(found, key=lambda one: one[0].offset):
                    entry = self._stored[item.storage_index.fqn]
                    chunk = entry.chunks[item.storage_index.index]
                    dtype = entry.properties.dtype
                    begin = _values_begin(file, place, math.prod(chunk.sizes) * dtype.itemsize)
                    _fill(planner.resolve_tensor(item), file.fileno(), begin, dtype, chunk.sizes, item)
        done: Future[None] = Future()
        done.set_result(None)
        return done


class _Slice:
    """A range of an open file, `length` bytes from `offset`, with the file methods that `zipfile` needs."""

    def __init__(self, file: Any, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def seek(self, to: int, whence: int = os.SEEK_SET) -> int:
        self._at = to + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        data = os.pread(self._file.fileno(), left if count < 0 else min(count, left), self._offset + self._at)
        self._at += len(data)
        return data


def _values_begin(file: Any, place: _StorageInfo, size: int) -> int:
    """Return the byte offset in the file at which the `size` bytes of a stored box's values begin."""
    part = _Slice(file, place.offset, place.length)
    try:
        with zipfile.ZipFile(part) as archive:  # type: ignore[arg-type]
            (info,) = (found for found in archive.infolist() if found.filename.endswith("/data/0"))
        part.seek(info.header_offset)
        signature, name, extra = _LOCAL_HEADER.unpack(part.read(_LOCAL_HEADER.size))
    except (zipfile.BadZipFile, ValueError, struct.error) as error:
        raise DamagedError(f"{file.name}: there is no stored tensor at byte {place.offset} ({error})") from None
    if signature != b"PK\3\4" or info.compress_type != zipfile.ZIP_STORED or info.file_size != size:
        raise DamagedError(f"{file.name}: there is no uncompressed tensor of {size} bytes at byte {place.offset}")
    return place.offset + info.header_offset + _LOCAL_HEADER.size + name + extra


def _fill(
    target: Tensor, descriptor: int, begin: int, dtype: torch.dtype, sizes: Sequence[int], item: ReadItem
) -> None:
    """Fill `target` with a part of a stored box of shape `sizes`, in blocks of whole rows."""
    offsets, lengths = list(item.storage_offsets), list(item.lengths)
    row = math.prod(lengths[1:]) * dtype.itemsize
    step = max(1, BLOCK // max(1, row))
    for first in range(0, lengths[0], step):
        count = min(step, lengths[0] - first)
        block = torch.empty([count, *lengths[1:]], dtype=dtype)
        view = memoryview(block.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        done = 0
        for start, numbers in runs(sizes, [offsets[0] + first, *offsets[1:]], [count, *lengths[1:]]):
            size = numbers * dtype.itemsize
            _read(descriptor, view[done : done + size], begin + start * dtype.itemsize)
            done += size
        target[first : first + count].copy_(block)


def runs(sizes: Sequence[int], offsets: Sequence[int], lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (begin, count) of the runs of consecutive elements that make up a part of a row-major tensor, in order.

    sizes: shape of the tensor; offsets, lengths: where the part begins and how long it is in each dimension.
    """
    whole = len(sizes)  # from this dimension on the part spans the whole dimension
    while whole > 1 and lengths[whole - 1] == sizes[whole - 1]:
        whole -= 1
    strides = [math.prod(sizes[dim + 1 :]) for dim in range(len(sizes))]
    last = whole - 1
    outer = (range(o, o + n) for o, n in zip(offsets[:last], lengths[:last], strict=True))
    for index in product(*outer):
        start = sum(i * stride for i, stride in zip(index, strides, strict=False)) + offsets[last] * strides[last]
        yield start, lengths[last] * strides[last]


def _read(descriptor: int, view: memoryview, offset: int) -> None:
    """Fill `view` with the file's bytes from `offset`. Raises `DamagedError` when the file ends too early."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise DamagedError(f"a file of the checkpoint ends at byte {offset + done}, before its tensors do")
        done += count


def _narrowed(values: Tensor, offsets: Sequence[int], lengths: Sequence[int]) -> Tensor:
    for dim, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        values = values.narrow(dim, offset, length)
    return values
