"""Loss in nats by a token's position in a long document, which shows the use of remembering more text."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data_prep import Tokenizer
from data_prep.errors import DataError
from evaluation.babilong.background import Background
from evaluation.babilong.randomness import Keyed
from evaluation.reader import Reader
from evaluation.results import Row

POINTS = 32  # of the curve, in steps that grow with the position
_CHARACTERS = 12  # of text that are tokenized for every token needed
_TRIES = 200


@dataclass(frozen=True)
class Documents:
    """Parts of long texts, each from a random place of a random text."""

    texts: Background
    tokenizer: Tokenizer
    seed: int = 0

    def ids(self, count: int, length: int) -> NDArray[np.int64]:
        """Return `count` parts, int64 [count, length], each after bos. Raises `DataError` if texts are too short."""
        rng, parts = Keyed("documents", self.seed, length), []
        for _ in range(_TRIES * count):
            text = self.texts.text(rng.below(self.texts.count))
            start = rng.below(max(1, len(text) - length))
            ids = self.tokenizer.encode(text[start : start + _CHARACTERS * length])[: length - 1]
            if len(ids) == length - 1:
                parts.append([self.tokenizer.bos_id, *ids])
            if len(parts) == count:
                return np.array(parts, dtype=np.int64)
        raise DataError(
            f"--background: {self.texts.name} has no {count} texts of {length:,} tokens; lower --lengths or "
            "--samples, or give longer texts"
        )


def loss_by_position(reader: Reader, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean nats at positions 1 … L - 1, float64 [L - 1], over samples ids int64 [B, L]."""
    total = np.zeros(ids.shape[1] - 1)
    for first in range(0, len(ids), reader.batch_size):
        batch, position = ids[first : first + reader.batch_size], 0
        for losses in reader.losses(batch):
            total[position : position + losses.shape[1]] += losses.sum(axis=0)
            position += losses.shape[1]
    return total / len(ids)


def rows_of(loss: NDArray[np.float64], lengths: list[tuple[str, int]], samples: int) -> list[Row]:
    """Return a row for each length: the mean loss of the tokens before it."""
    return [
        Row(
            task="perplexity",
            length=name,
            tokens=tokens,
            samples=samples,
            scorer="nats per token",
            value=float(loss[: tokens - 1].mean()),
        )
        for name, tokens in lengths
    ]


def series_of(loss: NDArray[np.float64]) -> dict[str, list[float]]:
    """Return the curve of mean losses over at most `POINTS` steps that grow; position: the last of each step."""
    edges = np.unique(np.geomspace(1, len(loss), POINTS + 1).round().astype(int))
    edges = np.concatenate([[0], edges])
    means = [float(loss[start:end].mean()) for start, end in pairwise(edges)]
    return {"position": [float(end) for end in edges[1:]], "loss": means}
