"""Exact match of a model's greedy answers, with the text read in pieces and the state carried from one to the next.

An answer counts as right when every one of its tokens, and the one that ends it, is the most likely one after the true
tokens before it: exactly then greedy decoding gives the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.network import LanguageModel


@dataclass(frozen=True)
class Asked:
    """prompt: token ids from bos to the end of the question; answer: ids of the answer and of its end."""

    prompt: np.ndarray
    answer: np.ndarray


@torch.no_grad()
def right_answers(
    net: LanguageModel, samples: Sequence[Asked], device: torch.device, batch: int = 64, piece: int = 4096
) -> list[bool]:
    """Return whether each sample is answered exactly.

    `batch` samples of similar length are read together, `piece` tokens at a time.
    """
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].prompt))
    right = [False] * len(samples)
    for begin in range(0, len(order), batch):
        group = order[begin : begin + batch]
        for index, found in zip(group, _read([samples[i] for i in group], net, device, piece), strict=True):
            right[index] = found
    return right


def _read(samples: list[Asked], net: LanguageModel, device: torch.device, piece: int) -> list[bool]:
    texts = [np.concatenate((s.prompt, s.answer)).astype(np.int64) for s in samples]
    longest = max(map(len, texts))
    tokens = np.zeros((len(texts), longest), np.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    wrong = [False] * len(texts)
    state = None
    for begin in range(0, longest - 1, piece):
        end = min(begin + piece, longest - 1)
        # where in this piece an answer's token is predicted: (row, position, label)
        asked = [
            (row, position - begin, int(text[position + 1]))
            for row, (sample, text) in enumerate(zip(samples, texts, strict=True))
            for position in range(len(sample.prompt) - 1, len(text) - 1)
            if begin <= position < end
        ]
        hidden, state = net.hidden(torch.from_numpy(tokens[:, begin:end]).to(device), None, state)
        if asked:
            rows, places, labels = zip(*asked, strict=True)
            logits = net.head.logits(hidden[list(rows), list(places)]).float()
            for row, guess, label in zip(rows, logits.argmax(-1).tolist(), labels, strict=True):
                wrong[row] |= guess != label
    return [not w for w in wrong]
