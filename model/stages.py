"""The model as one flat list of layers for the pipeline to cut; (hidden [B, L, D], documents) travels.

documents: int64 [B, 1 + L], that of the token before the first (-1: a sample begins) and those of the tokens.  With
sequence parallelism hidden is [B, L/tp, D].

With explicit memory (hidden, documents, found) travels.  hidden holds, behind the tokens, the reference BOS and, up to
the last memory layer, the references: [B, L + P + M*R, D], one float tensor.  found: int64 [B, M, 2], each reference's
length and the document whose tokens found it.
"""

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.decoder import DecoderLayer, new_embedding, new_norm
from model.explicit.reading import Reading, with_references
from model.explicit.references import References
from model.initialization import initialize
from model.parallel import TensorParallel
from model.parallel_context import ParallelContext
from model.preparation import Prepared
from model.segments import spans


class EmbeddingStage(nn.Module):
    """(ids, documents) -> (hidden, documents); (ids, documents, references, found) -> (hidden, documents, found)."""

    def __init__(self, config: ModelConfig, tp: TensorParallel, memory_on: bool) -> None:
        super().__init__()
        self.config, self.tp = config, tp
        self.embedding = new_embedding(config, tp)
        self.carry_travels = memory_on and config.memory.carry_travels

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids, documents, *explicit = inputs
        if explicit:
            tokens, found = explicit
            reading = packed_reading(self.config, self.tp, documents, found, tokens)
            return self.embedding(with_references(ids, reading)), documents, found
        hidden = self.embedding(ids)
        if self.carry_travels:  # the pipeline sends one float tensor: a memory's carry travels behind the tokens
            hidden = torch.cat((hidden, self.config.memory.first_carry(hidden).to(hidden.dtype)), dim=1)
        return hidden, documents


class DecoderStage(nn.Module):
    """One decoder layer; the pipeline balances its stages by counting these."""

    def __init__(
        self, config: ModelConfig, layout: ParallelContext, index: int, memory_on: bool, prepared: Prepared
    ) -> None:
        super().__init__()
        self.config, self.segments, self.prepared = config, layout.segments, prepared
        self.layer = DecoderLayer(config, layout, index, memory_on)
        self.carry_travels = memory_on and config.memory.carry_travels

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, documents, *explicit = inputs
        before, own = documents[:, 0], documents[:, 1:]
        config, length = self.config, own.size(1)
        begin = self.segments.rank * length
        raw = spans(begin, length, config.segment_length, config.attention_span, own, before)
        cut = self.prepared.of(config, raw, documents, hidden.dtype)
        if explicit:
            reading = packed_reading(config, self.layer.tp, documents, explicit[0])
            return self.layer(hidden, cut, None, reading)[0], documents, explicit[0]
        if not self.carry_travels:
            return self.layer(hidden, cut)[0], documents
        tokens, carry = hidden.split(length, dim=1)
        state = self.layer.initial_state(tokens)
        tokens, carry, _ = self.layer.step(tokens, carry.float(), cut[0], state)
        return torch.cat((tokens, carry.to(tokens.dtype)), dim=1), documents


class NormStage(nn.Module):
    """(hidden, documents) or (hidden, documents, found) -> hidden."""

    def __init__(self, config: ModelConfig, tp: TensorParallel, memory_on: bool) -> None:
        super().__init__()
        self.norm = new_norm(config, tp)
        self.more_travels = memory_on and (config.memory.carry_travels or config.explicit is not None)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        hidden, documents = inputs[:2]
        return self.norm(hidden[:, : documents.size(1) - 1] if self.more_travels else hidden)


class HeadStage(nn.Module):
    """hidden -> (hidden, this rank's weight [V/tp, D]): the loss takes them together (`model.loss`)."""

    def __init__(self, config: ModelConfig, tp: TensorParallel) -> None:
        super().__init__()
        self.head = new_embedding(config, tp)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return hidden, self.head.weight


def packed_reading(
    config: ModelConfig, tp: TensorParallel, documents: Tensor, found: Tensor, tokens: Tensor | None = None
) -> Reading:
    """The reading of whole samples whose every chunk brings one reference; tokens int64 [B, M, R]: to embed them."""
    assert config.explicit is not None
    lengths, owners = found.unbind(-1)
    references = References(lengths, tokens, documents=owners, window=config.explicit.references)
    return Reading(config, tp, 0, documents.size(1) - 1, len(documents), references, documents[:, 1:])


def tied_head(stage: EmbeddingStage, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The tied head, like `HeadStage`: the embedding stage's copy on the last stage."""
    return hidden, stage.embedding.weight


@dataclass(frozen=True)
class Layer:
    """One entry of the flat list.  Canonical name of a parameter = `prefix` + its name below the child `attribute`."""

    prefix: str
    attribute: str
    type: type[nn.Module]
    arguments: tuple[Any, ...]
    tied: bool = False  # embedding and head are the same weight

    def build(
        self, config: ModelConfig, seed: int, tp: TensorParallel, loaded_later: Container[str] = frozenset()
    ) -> nn.Module:
        """The module with its initial weights but those named in `loaded_later`."""
        module = self.type(*self.arguments)
        initialize(module.get_submodule(self.attribute), self.prefix, config, seed, tp, loaded_later)
        return module


def flat_layers(config: ModelConfig, layout: ParallelContext, memory_on: bool) -> list[Layer]:
    """Embedding, decoder layer x n, norm, head (a second entry of the embedding when tied)."""
    tp, prepared = layout.tensor, Prepared()  # one for all layers of this rank
    embedding = Layer("embedding", "embedding", EmbeddingStage, (config, tp, memory_on), tied=config.tie_embeddings)
    decoders = [
        Layer(f"layers.{i}", "layer", DecoderStage, (config, layout, i, memory_on, prepared))
        for i in range(config.num_layers)
    ]
    head = embedding if config.tie_embeddings else Layer("head", "head", HeadStage, (config, tp))
    return [embedding, *decoders, Layer("final_norm", "norm", NormStage, (config, tp, memory_on)), head]
