"""The state that a model carries from one call to the next. Its size does not depend on how much was read."""

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig
from model.errors import ModelError


@dataclass(frozen=True)
class LayerState:
    """One decoder layer's part of the state.

    keys, values: [B, c, Hkv, d] with the rotary embedding applied; c < attention_span * segment_length.
    """

    keys: Tensor
    values: Tensor
    memory: Any  # None, or the state type of the memory kind (tensors [B, …])
    references: Any = None  # explicit memory: model.explicit.memory.LayerReferences


@dataclass(frozen=True)
class StreamState:
    """The state of B streams after `position` tokens; pass it to the model's next call."""

    position: int  # tokens read so far
    config: ModelConfig  # of the model that made the state
    memory_on: bool  # whether that model had its memory
    layers: tuple[LayerState, ...]  # empty: every layer's initial state
    documents: Tensor | None  # int64 [B, c], document numbers of the cached tokens; None: one document
    bank_document: Tensor | None  # int64 [B], the document that the banks belong to (-1: none yet)
    last: "LastDocument | None" = None  # document of the last token; None: no ids were given so far
    carried: Any = None  # of a sequential memory, beside the layers' states (`model.memory.sequential`)
    references: Any = None  # explicit memory: model.explicit.memory.OpenChunk, when a chunk is open

    @property
    def batch(self) -> int:
        """Number of streams, B."""
        if self.layers:
            return self.layers[0].keys.size(0)
        return 0 if self.bank_document is None else len(self.bank_document)

    def select(self, rows: Tensor) -> "StreamState":
        """Return the state of the streams `rows`, int64 [n]; a stream may be left out, moved or repeated."""
        return map_tensors(lambda tensor: tensor.index_select(0, rows), self)

    def check(self, batch: int, config: ModelConfig, memory_on: bool) -> None:
        """Raise `ModelError` when the state is not one of this batch size and model."""
        if self.batch != batch:
            raise ModelError(
                f"state: its batch size is {self.batch}, this call's is {batch}; pass a batch of that size, or "
                "state=None to begin anew"
            )
        if self.memory_on != memory_on:
            raise ModelError(
                f"state: the model that made it had its memory {'on' if self.memory_on else 'off'}, this one has it "
                f"{'on' if memory_on else 'off'}; use state=None to begin anew"
            )
        if self.config != config:
            own, wanted = ({**vars(c), **vars(c.memory)} for c in (self.config, config))
            differing = [f"{k} {own[k]} (here {wanted[k]})" for k in own if own[k] != wanted[k] and k != "memory"]
            raise ModelError(
                f"state: the model that made it has {', '.join(differing)}; use a state with the model that made it, "
                "or state=None to begin anew"
            )


@dataclass(frozen=True)
class LastDocument:
    """The last token's document. ids: int64 [B] as the caller gave them; numbers: int64 [B], counted from 0."""

    ids: Tensor
    numbers: Tensor


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return `value` with `function` applied to every tensor in its tuples and dataclasses; others stay as they are."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(function, item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{name: map_tensors(function, item) for name, item in vars(value).items()})
    return value


def number_documents(
    document_ids: Tensor | None, like: Tensor, last: LastDocument | None, fresh: bool
) -> tuple[Tensor, LastDocument]:
    """Number the documents of a call by their boundaries, so that an id that is used again is a new document.

    Args: document_ids: int64 [B, L], None: the last document continues; like: int64 [B, L], of the call's shape; last:
        of the call before, None when no call had ids; fresh: the stream begins here, with document 0.
    Returns numbers int64 [B, L], and the last token's document.
    """
    zero = like.new_zeros(like.size(0))
    if document_ids is None:
        assert last is not None
        return last.numbers.unsqueeze(1).expand_as(like), last
    before = document_ids[:, 0] if fresh else (last.ids if last else zero)
    changes = document_ids != torch.cat((before.unsqueeze(1), document_ids[:, :-1]), dim=1)
    numbers = (last.numbers if last else zero).unsqueeze(1) + changes.cumsum(dim=1)
    return numbers, LastDocument(document_ids[:, -1], numbers[:, -1])
