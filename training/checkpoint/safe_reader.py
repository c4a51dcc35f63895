"""Reads files of torch.distributed.checkpoint without executing code that may be in them.

The file `.metadata` is a pickle, which can call any function while it is read. An entry declared as bytes would be
unpickled without restriction. And the metadata names the files to read. Here the pickle may build only the classes that
a checkpoint consists of, only tensors are accepted, and only files inside the folder are read.
"""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata

from training.checkpoint.manifest import METADATA, DamagedError, plain_name

_LARGEST = 1 << 30  # most bytes of a .metadata; the shards of a thousand ranks take a few hundred MB

_ALLOWED: dict[tuple[str, str], Any] = {
    (cls.__module__, cls.__qualname__): cls
    for cls in (
        metadata.Metadata,
        metadata.MetadataIndex,
        metadata.StorageMeta,
        metadata.TensorStorageMetadata,
        metadata.ChunkStorageMetadata,
        metadata.TensorProperties,
        metadata._MEM_FORMAT_ENCODING,
        filesystem._StorageInfo,
    )
} | {("torch", "Size"): torch.Size}


def _layout(name: Any) -> torch.layout:
    if name != "torch.strided":
        raise pickle.UnpicklingError(f"layout {name!r}")
    return torch.strided


_ALLOWED[("torch.serialization", "_get_layout")] = _layout  # the function with which torch pickles a layout


class _Unpickler(pickle.Unpickler):
    """Builds only the classes of a checkpoint's metadata; it refuses everything else before it is called."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (found := _ALLOWED.get((module, name))) is not None:
            return found
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype  # type: ignore[return-value]  # pickled as a global of torch
        raise pickle.UnpicklingError(f"it contains {module}.{name}")


class SafeReader(dcp.FileSystemReader):
    """DCP's reader for checkpoints of tensors only. `read_metadata` raises `DamagedError` for anything else."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        """Return the checkpoint's list of tensors, checked by `read_metadata`."""
        found = read_metadata(Path(self.path))
        found.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return found


def read_metadata(folder: Path) -> metadata.Metadata:
    """Return the list of a checkpoint's tensors and their places. Raises `DamagedError` for anything but tensors."""
    path = folder / METADATA
    try:
        if path.stat().st_size > _LARGEST:
            raise DamagedError(f"{path}: has more than {_LARGEST} bytes")
        found = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror})") from None
    except DamagedError:
        raise
    except Exception as error:  # a damaged pickle can raise any exception
        raise DamagedError(f"{path}: is refused, it is not a list of tensors ({error})") from None
    _check(found, path)
    return found


def _check(found: Any, path: Path) -> None:
    """Raise `DamagedError` unless `found` describes tensors in files of the folder."""
    if not isinstance(found, metadata.Metadata) or not isinstance(found.storage_data, dict):
        raise DamagedError(f"{path}: is refused, it does not describe a checkpoint")
    for name, entry in found.state_dict_metadata.items():
        if not isinstance(entry, metadata.TensorStorageMetadata):
            raise DamagedError(f"{path}: is refused, {name} is not a tensor but {type(entry).__name__}")
    for index, place in found.storage_data.items():
        if not (isinstance(index, metadata.MetadataIndex) and isinstance(place, filesystem._StorageInfo)):
            raise DamagedError(f"{path}: is refused, it gives the place of something that is not a tensor")
        if not plain_name(place.relative_path):
            raise DamagedError(f"{path}: is refused, {index.fqn} is in {place.relative_path!r}, outside the folder")
        if getattr(place, "transform_descriptors", None):
            raise DamagedError(f"{path}: is refused, {index.fqn} asks for a transformation while it is read")
