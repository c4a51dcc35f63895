"""Columns of numbers in Arrow files of one record batch, written atomically and memory-mapped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.errors import DataError
from data_prep.files import replacing


def arrow_array(values: NDArray[Any]) -> pa.Array:
    """Returns the values as an Arrow array without a copy. `pa.array` would import pandas, 0.3 s in every process."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def numpy_view(values: pa.Array) -> NDArray[Any]:
    """Returns a numpy view of an array without nulls. `to_numpy` would import pandas, 0.3 s in every process.

    A column of fixed_size_binary(w) becomes uint8 [n, w].
    """
    width = values.type.byte_width if pa.types.is_fixed_size_binary(values.type) else None
    kind = np.dtype(np.uint8 if width else str(values.type))  # "uint16": Arrow and numpy agree on these names
    buffer, each = values.buffers()[1], width or 1
    if buffer is None or not len(values):
        return np.empty((0, width) if width else 0, dtype=kind)
    flat = np.frombuffer(
        buffer, dtype=kind, count=len(values) * each, offset=values.offset * values.type.bit_width // 8
    )
    return flat.reshape(-1, width) if width else flat


def write_columns(path: Path, columns: Mapping[str, NDArray[Any] | pa.Array], notes: Mapping[str, str] = {}) -> None:
    """Writes the file atomically.

    Args:
        columns: numbers [n], or uint8 [n, w] for rows of w bytes, or an Arrow array.
        notes: texts that the file's schema stores.
    """
    arrays = {name: _array(values) for name, values in columns.items()}
    schema = pa.schema([(name, array.type) for name, array in arrays.items()], metadata=dict(notes))
    batch = pa.record_batch(list(arrays.values()), schema=schema)
    with replacing(path) as temporary, pa.ipc.new_file(temporary, schema) as writer:
        writer.write_batch(batch)


def map_batch(path: Path) -> pa.RecordBatch:
    """Returns the file's record batch, memory-mapped. Raises DataError unless the file has exactly one."""
    try:
        # Closing releases the file descriptor; the arrays keep the mapping alive.
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            if reader.num_record_batches != 1:
                raise DataError(
                    f"{path}: has {reader.num_record_batches} record batches, but must have one; make it again"
                )
            return reader.get_batch(0)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not an Arrow file ({error}); copy it again, or make it again") from error


def map_columns(path: Path, names: list[str]) -> list[NDArray[Any]]:
    """Returns views of the named columns. Raises DataError when one is missing."""
    batch = map_batch(path)
    for name in names:
        if name not in batch.schema.names:
            raise DataError(f"{path}: has no column {name}; another program wrote it: make it again")
    return [numpy_view(batch.column(name)) for name in names]


def _array(values: NDArray[Any] | pa.Array) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if values.ndim == 1:
        return arrow_array(values)
    rows = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, pa.py_buffer(rows.reshape(-1))])
