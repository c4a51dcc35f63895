"""The model as one flat list of layers, which the pipeline engine cuts into stages.

A stage sends (hidden, documents) to the next one. hidden: [B, L, D], or [B, L/tp, D] with sequence parallelism.
documents: int64 [B, 1 + L], the document ids of the token before the first (-1: a sample begins) and of the tokens.

With explicit memory a stage sends (hidden, documents, reference_lengths, reference_document_ids). hidden then holds
the tokens, the reference BOS and, up to the last memory layer, the references: [B, L + P + M*R, D], because a pipeline
sends one float tensor. The last two are int64 [B, M]: each reference's number of tokens, and the document whose tokens
retrieved it.
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
    """(ids, documents) -> (hidden, documents).

    With explicit memory (ids, documents, references, reference_lengths, reference_document_ids) -> (hidden, documents,
    reference_lengths, reference_document_ids).
    """

    def __init__(self, config: ModelConfig, tp: TensorParallel, memory_on: bool) -> None:
        super().__init__()
        self.config, self.tp = config, tp
        self.embedding = new_embedding(config, tp)
        self.carry_travels = memory_on and config.memory.carry_travels

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids, documents, *explicit = inputs
        if explicit:
            tokens, lengths, document_ids = explicit
            reading = packed_reading(self.config, self.tp, documents, lengths, document_ids, tokens)
            return self.embedding(with_references(ids, reading)), documents, lengths, document_ids
        hidden = self.embedding(ids)
        if self.carry_travels:  # a pipeline sends one float tensor, so the memory's carry is appended to the tokens
            hidden = torch.cat((hidden, self.config.memory.first_carry(hidden).to(hidden.dtype)), dim=1)
        return hidden, documents


class DecoderStage(nn.Module):
    """One decoder layer: what the stages send -> the same after the layer."""

    def __init__(
        self, config: ModelConfig, parallel: ParallelContext, index: int, memory_on: bool, prepared: Prepared
    ) -> None:
        super().__init__()
        self.config, self.segments, self.prepared = config, parallel.segments, prepared
        self.layer = DecoderLayer(config, parallel, index, memory_on)
        self.carry_travels = memory_on and config.memory.carry_travels

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, documents, *explicit = inputs
        before, own = documents[:, 0], documents[:, 1:]
        config, length = self.config, own.size(1)
        begin = self.segments.rank * length
        raw = spans(begin, length, config.segment_length, config.attention_span, own, before)
        cut = self.prepared.of(config, raw, documents, hidden.dtype)
        if explicit:
            reading = packed_reading(config, self.layer.tp, documents, *explicit)
            return self.layer(hidden, cut, None, reading)[0], documents, *explicit
        if not self.carry_travels:
            return self.layer(hidden, cut)[0], documents
        tokens, carry = hidden.split(length, dim=1)
        state = self.layer.initial_state(tokens)
        tokens, carry, _ = self.layer.step(tokens, carry.float(), cut[0], state)
        return torch.cat((tokens, carry.to(tokens.dtype)), dim=1), documents


class NormStage(nn.Module):
    """What the stages send -> the normalised tokens [B, L, D], without references and carry."""

    def __init__(self, config: ModelConfig, tp: TensorParallel, memory_on: bool) -> None:
        super().__init__()
        self.norm = new_norm(config, tp)
        self.more_travels = memory_on and (config.memory.carry_travels or config.explicit is not None)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        hidden, documents = inputs[:2]
        return self.norm(hidden[:, : documents.size(1) - 1] if self.more_travels else hidden)


class HeadStage(nn.Module):
    """hidden -> (hidden, this rank's weight [V/tp, D]), the two operands of the loss (`model.loss`)."""

    def __init__(self, config: ModelConfig, tp: TensorParallel) -> None:
        super().__init__()
        self.head = new_embedding(config, tp)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return hidden, self.head.weight


def packed_reading(
    config: ModelConfig,
    tp: TensorParallel,
    documents: Tensor,
    lengths: Tensor,
    document_ids: Tensor,
    tokens: Tensor | None = None,
) -> Reading:
    """The reading of whole samples whose every chunk brings one reference.

    Args: documents int64 [B, 1 + L]; of the references: lengths and document_ids int64 [B, M], tokens int64 [B, M, R],
        which only the embedding needs.
    """
    assert config.explicit is not None
    references = References(lengths, tokens, documents=document_ids, window=config.explicit.references)
    return Reading(config, tp, 0, documents.size(1) - 1, len(documents), references, documents[:, 1:])


def tied_head(stage: EmbeddingStage, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """hidden -> (hidden, weight) as `HeadStage`, with the weight of the last stage's copy of the embedding."""
    return hidden, stage.embedding.weight


@dataclass(frozen=True)
class Layer:
    """One entry of the flat list.

    A parameter's canonical name is `prefix` followed by its name below the module's child `attribute`.
    """

    prefix: str
    attribute: str
    type: type[nn.Module]
    arguments: tuple[Any, ...]
    tied: bool = False  # embedding and head are the same weight

    def build(
        self, config: ModelConfig, seed: int, tp: TensorParallel, loaded_later: Container[str] = frozenset()
    ) -> nn.Module:
        """Return the module with initial weights; those named in `loaded_later` are NaN."""
        module = self.type(*self.arguments)
        initialize(module.get_submodule(self.attribute), self.prefix, config, seed, tp, loaded_later)
        return module


def flat_layers(config: ModelConfig, parallel: ParallelContext, memory_on: bool) -> list[Layer]:
    """Return embedding, decoder layers, norm and head; with tied embeddings the head is the embedding's entry again."""
    tp, prepared = parallel.tensor, Prepared()  # all layers of this rank share one
    embedding = Layer("embedding", "embedding", EmbeddingStage, (config, tp, memory_on), tied=config.tie_embeddings)
    decoders = [
        Layer(f"layers.{i}", "layer", DecoderStage, (config, parallel, i, memory_on, prepared))
        for i in range(config.num_layers)
    ]
    head = embedding if config.tie_embeddings else Layer("head", "head", HeadStage, (config, tp))
    return [embedding, *decoders, Layer("final_norm", "norm", NormStage, (config, tp, memory_on)), head]
