"""From the chunks' neighbours in a batch to the references that each chunk reads (Memory3, sections 4 and 6)."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep import Batch
from model.config import ExplicitConfig

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

        Returns tokens [B, U, R] and found [B, U, 2]: lengths, and the document of the last token of the chunk that found
        the reference.
        """
        ids, chunk = batch.neighbours[rows], self.explicit.chunk_length
        owners = documents[:, chunk::chunk]  # of the last token of each chunk
        if self.explicit.causal:
            ids, owners = np.roll(ids, 1, axis=1), documents[:, : -1 : chunk]
            ids[:, 0] = -1
        tokens, lengths = self.texts.read(ids.reshape(-1).astype(np.int64))
        found = np.stack((lengths.reshape(ids.shape), owners.astype(np.int64)), axis=-1)
        return [tokens.reshape(*ids.shape, -1), found]
