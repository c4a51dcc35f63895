"""What a model carries from one call to the next: constant in size, whatever has been read."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from model.errors import ModelError


@dataclass(frozen=True)
class LayerState:
    """One decoder layer's share: keys and values still attended to, and its memory's own state.

    keys, values: [B, c, Hkv, d] with the rotary embedding applied; c < attention_span * segment_length.
    """

    keys: Tensor
    values: Tensor
    memory: Any  # None, or the state type of the memory kind (tensors [B, …])


@dataclass(frozen=True)
class StreamState:
    """State of a whole model after `position` tokens; pass it to the next call."""

    position: int  # tokens read so far
    segment_length: int  # T it was made with
    layers: tuple[LayerState, ...]
    documents: Tensor | None  # int64 [B, c] documents of the cached tokens, None: all one document
    bank_document: Tensor | None  # int64 [B] document the banks belong to (-1: none yet)

    @property
    def batch(self) -> int:
        return self.layers[0].keys.size(0)

    def check(self, batch: int, num_layers: int, segment_length: int) -> None:
        """Raise `ModelError` when this state does not belong to a model and batch of these sizes."""
        for what, own, wanted, way_out in (
            ("batch size", self.batch, batch, "pass a batch of that size, or state=None to begin anew"),
            ("number of layers", len(self.layers), num_layers, "use the state with the model that made it"),
            ("segment_length", self.segment_length, segment_length, "use the state with the model that made it"),
        ):
            if own != wanted:
                raise ModelError(f"state: its {what} is {own}, this call's is {wanted}; {way_out}")
