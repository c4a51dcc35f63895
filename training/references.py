"""References in training: from the chunks' neighbours in a batch to what each chunk reads (Memory3, sections 4, 6)."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep import Batch, PreparedFolder
from model.config import ExplicitConfig
from training.config import RunConfig

BOS_TEXT = "Reference:"  # behind the tokenizer's BOS

Int64 = NDArray[np.int64]


class Texts(Protocol):
    """Where references' tokens are: `data_prep.references.ReferenceStore`."""

    def read(self, ids: Int64) -> tuple[Int64, Int64]:
        """ids int64 [n], -1: none -> tokens int64 [n, R], lengths int64 [n]."""
        ...


class ReferenceReader:
    """The references of samples whose every chunk has found one (`Batch.neighbours`).

    causal: a chunk brings what the chunk before it found, so that nothing a token sees was found by later tokens; else,
    as published, what its own tokens found.  A sample's first chunk brings nothing then: what the tokens before the
    sample found is not the sample's.
    """

    def __init__(self, texts: Texts, explicit: ExplicitConfig) -> None:
        self.texts, self.explicit = texts, explicit

    def read(self, batch: Batch, rows: Int64, documents: NDArray[np.int32]) -> list[Int64]:
        """rows: int64 [B] of the batch; documents: int32 [B, 1 + L], of the token before the sample too.

        Returns what `MicroBatch` has of references: tokens [B, U, R], lengths [B, U] and document ids [B, U], each the
        document of the last token of the chunk that retrieved the reference.
        """
        assert batch.neighbours is not None
        ids, chunk = batch.neighbours[rows], self.explicit.chunk_length
        document_ids = documents[:, chunk::chunk]  # of the last token of each chunk
        if self.explicit.causal:
            ids, document_ids = np.roll(ids, 1, axis=1), documents[:, :-1:chunk]
            ids[:, 0] = -1
        tokens, lengths = self.texts.read(ids.reshape(-1).astype(np.int64))
        shorter = self.explicit.reference_length - tokens.shape[1]
        tokens = np.pad(tokens, ((0, 0), (0, shorter))) if shorter else tokens
        return [tokens.reshape(*ids.shape, -1), lengths.reshape(ids.shape), document_ids.astype(np.int64)]


def with_bos(config: RunConfig) -> RunConfig:
    """`config` with `model.explicit.bos` taken from the data's tokenizer where it is empty."""
    explicit = config.model.explicit
    if explicit is None or explicit.bos:
        return config
    tokenizer = PreparedFolder(config.data.path, config.data.cache).tokenizer()
    explicit = explicit.model_copy(update={"bos": (tokenizer.bos_id, *tokenizer.encode(BOS_TEXT))})
    return config.model_copy(update={"model": config.model.model_copy(update={"explicit": explicit})})


def explained(config: RunConfig) -> list[str]:
    """What a run says of its explicit memory when it starts."""
    explicit = config.model.explicit
    if explicit is None or not any(phase.memory for phase in config.phases):
        return []
    layers = len(explicit.memory_layers(config.model.num_layers))
    lines = [
        f"explicit memory: {explicit.tokens} of {explicit.reference_length} tokens a head in {layers} layers; a chunk "
        f"of {explicit.chunk_length} tokens sees the references of {explicit.references} chunks; '<s>{BOS_TEXT}' is "
        f"{list(explicit.bos)}"
    ]
    if not explicit.causal:
        lines.append(
            "NOT CAUSAL: model.explicit.causal is false, as published: a chunk reads what its own tokens found, so "
            "losses know something of the tokens they are about, and compare with no other model's"
        )
    return lines
