"""Reads the micro-batches of one step on one rank from the token stream."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep import Batch, TokenStream
from training.references import ReferenceReader

PipelineItem = tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MicroBatch:
    """One rank's tokens of B samples, L tokens each: whole samples, or this rank's segments of each.

    ids, labels: int64 [B, L].
    documents: int64 [B, 1 + L], document numbers, beginning with that of the token before the first (-1: none).
    weights: fp32 [B, L], factor of each label's loss.
    references: int64 [B, U, R], tokens of the U references that the chunks bring (explicit memory only).
    reference_lengths: int64 [B, U], their number of tokens (0: the chunk brings none).
    reference_document_ids: int64 [B, U], the documents whose tokens retrieved them.
    changes: how often the document changes within the rows, counted on the CPU; None: not counted. Counting it on a GPU
        would synchronise.
    """

    ids: Tensor
    documents: Tensor
    labels: Tensor
    weights: Tensor
    references: Tensor | None = None
    reference_lengths: Tensor | None = None
    reference_document_ids: Tensor | None = None
    changes: int | None = None

    def _each(self, change: Callable[[Tensor], Tensor]) -> "MicroBatch":
        changed: dict[str, Any] = {n: change(x) for n, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **changed)

    def to(self, device: torch.device) -> "MicroBatch":
        """Return a copy on `device`; the copy to a GPU does not block when the tensors are pinned."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pinned(self) -> "MicroBatch":
        """Return a copy in page-locked memory, which is copied to a GPU while the GPU computes."""
        return self._each(lambda x: x.pin_memory())

    def scaled(self, factor: float) -> "MicroBatch":
        """Return a copy whose weights are multiplied by `factor`.

        Pinned weights stay pinned, so that the copy to a GPU does not block.
        """
        weights = self.weights * factor
        return replace(self, weights=weights.pin_memory() if self.weights.is_pinned() else weights)

    def without_references(self) -> "MicroBatch":
        """Return a copy whose reference lengths are all 0, so that no token sees a reference."""
        lengths = self.reference_lengths
        return self if lengths is None else replace(self, reference_lengths=torch.zeros_like(lengths))

    @property
    def pipeline_item(self) -> PipelineItem:
        """(inputs of the first pipeline stage, labels and weights for the last)."""
        inputs: tuple[Tensor, ...] = (self.ids, self.documents)
        if self.references is not None:
            assert self.reference_lengths is not None and self.reference_document_ids is not None
            inputs += (self.references, self.reference_lengths, self.reference_document_ids)
        return inputs, (self.labels, self.weights)


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of a step: its micro-batches.

    Weights are 1 for valid labels and 0 for others; the engine divides by the global number of valid labels.
    """

    micro_batches: list[MicroBatch]

    @property
    def valid(self) -> float:
        """Number of valid labels of this rank."""
        return float(sum(m.weights.sum() for m in self.micro_batches))


def read(
    stream: TokenStream,
    indices: Sequence[int],
    micro_batch_size: int,
    segments: tuple[int, int] = (0, 1),
    references: ReferenceReader | None = None,
) -> StepBatch:
    """Read samples from the stream into micro-batches.

    Args:
        stream: where the samples come from.
        indices: numbers of the samples; -1 stands for an empty sample whose labels all weigh 0.
        micro_batch_size: samples of a micro-batch.
        segments: (rank, size) in the group of ranks that share the segments of every sample.
        references: reader of the retrieved references, for a phase with explicit memory.
    """
    real = [i for i in indices if i >= 0]
    batch = stream.batch(real or [0])
    rows = np.cumsum([i >= 0 for i in indices]) - 1
    return StepBatch(
        [
            _micro_batch(batch, rows[i : i + micro_batch_size], indices[i : i + micro_batch_size], segments, references)
            for i in range(0, len(indices), micro_batch_size)
        ]
    )


def _micro_batch(
    batch: Batch,
    rows: NDArray[np.int64],
    indices: Sequence[int],
    segments: tuple[int, int],
    references: ReferenceReader | None,
) -> MicroBatch:
    """Return the micro-batch of `rows` of the batch, converted to the dtypes that torch's embedding and loss take."""
    rows = np.maximum(rows, 0)
    weights = batch.loss_mask[rows].astype(np.float32)
    weights[[i < 0 for i in indices]] = 0.0
    documents = np.pad(batch.document_ids[rows, :-1], ((0, 0), (1, 0)), constant_values=-1)
    length = weights.shape[1] // segments[1]
    begin, end = segments[0] * length, (segments[0] + 1) * length
    tokens = batch.tokens[rows, begin : end + 1].astype(np.int64)
    parts = [tokens[:, :-1], documents[:, begin : end + 1].astype(np.int64), tokens[:, 1:], weights[:, begin:end]]
    if references is not None:
        parts += references.read(batch, rows, documents)
    own = documents[:, begin + 1 : end + 1]
    changes = int(np.count_nonzero(own[:, 1:] != own[:, :-1]))
    tensors: list[Any] = [torch.from_numpy(np.ascontiguousarray(part)) for part in parts]
    return replace(MicroBatch(*tensors), changes=changes)


def rank_share(first: int, samples: int, data_rank: int, data_size: int) -> range:
    """Return the sample numbers of one data-parallel rank: a contiguous block of first..first + samples - 1.

    So every data-parallel size reads the same samples in the same step.
    """
    share = samples // data_size
    return range(first + data_rank * share, first + (data_rank + 1) * share)


@dataclass(frozen=True)
class Share:
    """Numbers of one rank's samples of a step, and whether their references are read."""

    indices: range
    references: bool = False


class Prefetcher:
    """Reads the next step's batch in a thread while the present step is computed."""

    def __init__(
        self,
        stream: TokenStream,
        micro_batch_size: int,
        segments: tuple[int, int] = (0, 1),
        references: ReferenceReader | None = None,
    ) -> None:
        self.stream, self.micro_batch_size, self.segments = stream, micro_batch_size, segments
        self.references = references
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="data")
        self._next: tuple[Share, Future[StepBatch]] | None = None

    def get(self, share: Share, following: Share | None) -> StepBatch:
        """Return the batch of `share`, and start reading that of `following` (None: of no step)."""
        batch = self._next[1].result() if self._next and self._next[0] == share else self._read(share)
        self._next = None
        if following is not None:
            self._next = (following, self._pool.submit(self._read, following))
        return batch

    def _read(self, share: Share) -> StepBatch:
        references = self.references if share.references else None
        batch = read(self.stream, share.indices, self.micro_batch_size, self.segments, references)
        return StepBatch([m.pinned() for m in batch.micro_batches]) if torch.cuda.is_available() else batch

    def close(self) -> None:
        """End the thread, after the batch that it is reading."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def evaluation_shares(samples: int, data_rank: int, data_size: int, micro_batch_size: int) -> list[int]:
    """Return one rank's share of the samples 0..samples-1, padded with -1.

    All ranks have equally many micro-batches.
    """
    step = data_size * micro_batch_size
    padded = [i if i < samples else -1 for i in range(-(-samples // step) * step)]
    share = len(padded) // data_size
    return padded[data_rank * share : (data_rank + 1) * share]


def iterate(batch: StepBatch, device: torch.device) -> Iterator[PipelineItem]:
    """Yield the micro-batches as DeepSpeed's pipeline takes them, already on the device.

    DeepSpeed would otherwise copy them itself and wait for each copy.
    """
    return (m.to(device).pipeline_item for m in batch.micro_batches)
