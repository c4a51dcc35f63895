"""References in training: which references each chunk of a batch reads (Memory3, sections 4 and 6)."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep import Batch, PreparedFolder
from model.config import ExplicitConfig
from training.config import RunConfig

BOS_TEXT = "Reference:"  # follows the tokenizer's BOS in the reference BOS

Int64 = NDArray[np.int64]


class Texts(Protocol):
    """The tokens of references; `data_prep.references.ReferenceStore` is one."""

    def read(self, ids: Int64) -> tuple[Int64, Int64]:
        """Return tokens int64 [n, R] and lengths int64 [n] of the references `ids`, int64 [n]; -1: length 0."""
        ...


class ReferenceReader:
    """Reads the references of a batch in which one reference was retrieved for every chunk (`Batch.neighbours`).

    With `explicit.causal`, a chunk brings the reference retrieved for the chunk before it, so that no token sees a
    reference that later tokens retrieved; the first chunk of a sample brings none. Without it, as published, a chunk
    brings the reference retrieved for its own tokens.
    """

    def __init__(self, texts: Texts, explicit: ExplicitConfig) -> None:
        self.texts, self.explicit = texts, explicit

    def read(self, batch: Batch, rows: Int64, documents: NDArray[np.int32]) -> list[Int64]:
        """Return the reference tensors of a `MicroBatch`: tokens [B, U, R], lengths [B, U], document ids [B, U].

        A document id is that of the last token of the chunk that retrieved the reference.

        Args:
            batch: the samples.
            rows: int64 [B], rows of the batch.
            documents: int32 [B, 1 + L], document numbers, beginning with that of the token before the sample.
        """
        assert batch.neighbours is not None
        ids, chunk = batch.neighbours[rows], self.explicit.chunk_length
        document_ids = documents[:, chunk::chunk]  # document of the last token of each chunk
        if self.explicit.causal:
            ids, document_ids = np.roll(ids, 1, axis=1), documents[:, :-1:chunk]
            ids[:, 0] = -1
        tokens, lengths = self.texts.read(ids.reshape(-1).astype(np.int64))
        shorter = self.explicit.reference_length - tokens.shape[1]
        tokens = np.pad(tokens, ((0, 0), (0, shorter))) if shorter else tokens
        return [tokens.reshape(*ids.shape, -1), lengths.reshape(ids.shape), document_ids.astype(np.int64)]


def with_bos(config: RunConfig) -> RunConfig:
    """Return `config` with an empty `model.explicit.bos` filled in from the data's tokenizer."""
    explicit = config.model.explicit
    if explicit is None or explicit.bos:
        return config
    tokenizer = PreparedFolder(config.data.path, config.data.cache).tokenizer()
    explicit = explicit.model_copy(update={"bos": (tokenizer.bos_id, *tokenizer.encode(BOS_TEXT))})
    return config.model_copy(update={"model": config.model.model_copy(update={"explicit": explicit})})


def explained(config: RunConfig) -> list[str]:
    """Return the lines about explicit memory that a run prints when it starts; empty without explicit memory."""
    explicit = config.model.explicit
    if explicit is None or not any(phase.memory for phase in config.phases):
        return []
    layers = len(explicit.memory_layers(config.model.num_layers))
    lines = [
        f"explicit memory: each head of {layers} layers keeps {explicit.tokens} of a reference's "
        f"{explicit.reference_length} tokens; a chunk of {explicit.chunk_length} tokens sees the references of "
        f"{explicit.references} chunks; the reference BOS '<s>{BOS_TEXT}' is {list(explicit.bos)}"
    ]
    if not explicit.causal:
        lines.append(
            "NOT CAUSAL: model.explicit.causal is false, as published: a chunk reads references retrieved with its own "
            "tokens, so the model sees information about the tokens it predicts, and its losses cannot be compared "
            "with those of other models"
        )
    return lines
