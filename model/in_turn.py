"""The memories whose segments can only be computed one after the other: the published LM2 and RMT.

Each function runs the decoder layers over the pieces of a call, at most one segment a piece, and carries what the kind
carries.  Gradients reach back through `bptt_segments` segments: the carried memory is detached at every such boundary
of the stream (all of the call when it is not set).

B batch, n tokens of a piece, T segment length, m memory vectors, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig
from model.decoder import DecoderLayer
from model.memory.interface import lost_slots, memories
from model.memory.lm2_depth.module import initial_slots
from model.memory.rmt.module import RMTMemory, frame_of
from model.segments import Piece
from model.state import LayerState


@dataclass(frozen=True)
class SlotBank:
    """slots: fp32 [B, T, D] after the last block; owners: int64 [B, T] their documents (-1: initial), None: all one."""

    slots: Tensor
    owners: Tensor | None


@dataclass(frozen=True)
class Vectors:
    """vectors: [B, m, D], what the next segment reads."""

    vectors: Tensor


Call = Callable[..., Any]  # runs a layer's function: directly, or recomputing it in the backward pass


def _truncated(x: Tensor, piece: Piece, config: ModelConfig) -> Tensor:
    """Detach where the backward pass ends."""
    every, segment = config.memory.bptt_segments, piece.start // config.segment_length
    return x.detach() if every and piece.offset == 0 and segment and segment % every == 0 else x


def run_depth(
    config: ModelConfig,
    layers: Sequence[DecoderLayer],
    hidden: Tensor,
    pieces: Sequence[Piece],
    states: list[LayerState],
    bank: SlotBank | None,
    call: Call,
) -> tuple[Tensor, list[LayerState], SlotBank]:
    """hidden [B, L, D] through all layers, the bank through the layers and then to the next segment."""
    batch, length, size = hidden.size(0), config.segment_length, config.hidden_size
    first = initial_slots(length, size, hidden.device).expand(batch, -1, -1)
    packed = pieces[0].documents is not None
    if bank is None:
        bank = SlotBank(first, None)
    slots, owners = bank.slots, bank.owners
    if packed and owners is None:  # what came before had no document ids: it was document 0
        fill = 0 if pieces[0].start >= length else -1
        owners = torch.full((batch, length), fill, dtype=torch.int64, device=hidden.device)
        owners[:, : pieces[0].offset] = 0
    lost = lost_slots((m for layer in layers for m in memories(layer)), length, hidden.device)  # [T]
    outputs = []
    for piece in pieces:
        here = slice(piece.offset, piece.offset + piece.length)
        x, entering = hidden[:, piece.begin : piece.end], _truncated(slots[:, here], piece, config)
        if packed:
            assert piece.documents is not None and owners is not None
            documents = piece.documents[:, -piece.length :]
            entering = torch.where((owners[:, here] == documents).unsqueeze(2), entering, first[:, here])
            owners = torch.cat((owners[:, : here.start], documents, owners[:, here.stop :]), dim=1)
        if lost is not None:
            entering = torch.where(lost[here, None], first[:, here], entering)
        for index, layer in enumerate(layers):
            x, entering, states[index] = call(layer.depth_piece, x, entering, piece, states[index])
        slots = torch.cat((slots[:, : here.start], entering, slots[:, here.stop :]), dim=1)
        outputs.append(x)
    return torch.cat(outputs, dim=1), states, SlotBank(slots, owners)


def run_rmt(
    config: ModelConfig,
    layers: Sequence[DecoderLayer],
    hidden: Tensor,
    pieces: Sequence[Piece],
    states: list[LayerState],
    carried: Vectors | None,
    call: Call,
) -> tuple[Tensor, list[LayerState], Vectors]:
    """hidden [B, L, D] through all layers with read and write vectors around each segment."""
    own = [m.tokens for layer in layers for m in memories(layer) if isinstance(m, RMTMemory)]
    (tokens,) = (t for t in own if t is not None)
    first = tokens.to(hidden.dtype).expand(hidden.size(0), -1, -1)  # [B, m, D]
    vectors = first if carried is None else carried.vectors
    lost = lost_slots((m for layer in layers for m in memories(layer)), config.slots, hidden.device)  # [m]
    outputs = []
    for piece in pieces:
        assert piece.documents is not None and piece.bank_document is not None
        vectors = _truncated(vectors, piece, config)
        if lost is not None:
            vectors = torch.where(lost[:, None], first, vectors)
        parts = [hidden[:, piece.begin : piece.end]]
        if piece.offset == 0:
            parts = [vectors, first, *parts]
        if piece.closes:
            goes_on = (piece.documents[:, -1] == piece.bank_document)[:, None, None]
            parts.append(torch.where(goes_on, vectors, first))
        x = torch.cat(parts, dim=1)
        frame = frame_of(piece, config.slots, hidden.device)
        for index, layer in enumerate(layers):
            x, states[index] = call(layer.rmt_piece, x, frame, piece.closes, states[index])
        begin = 2 * config.slots if piece.offset == 0 else 0
        outputs.append(x[:, begin : begin + piece.length])
        if piece.closes:
            vectors = x[:, begin + piece.length :]
    return torch.cat(outputs, dim=1), states, Vectors(vectors)
