"""Read samples of unequal length in batches, segment by segment with the memory carried, for answers and losses.

Only the memory of the token ids grows with the length of the samples. All streams of a batch are at the same position:
when one sample has ended and answers, the others still read. So no sample is padded on the left, and a sample's result
does not depend on its batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.errors import ModelError
from model.network import LanguageModel
from model.state import StreamState

Ids = NDArray[np.int64] | Sequence[int]


def _ignore(tokens: int) -> None:
    pass


def _never(answer: list[int]) -> bool:
    return False


@dataclass
class Reader:
    """A model in evaluation mode.

    Args:
        batch_size: samples of a batch.
        chunk_tokens: tokens of the whole batch in a call, rounded to whole segments, at least one for each sample.
        advance: called with the number of the samples' tokens read since the last call.
    """

    net: LanguageModel
    batch_size: int = 8
    chunk_tokens: int = 16384
    advance: Callable[[int], None] = field(default=_ignore)

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def answers(
        self,
        prompts: Sequence[Ids],
        max_tokens: int,
        stop_ids: Sequence[int] = (),
        stop: Callable[[list[int]], bool] = _never,
    ) -> list[list[int]]:
        """Return greedy continuations of the prompts, in their order, of at most `max_tokens` tokens.

        An answer ends before a token of `stop_ids`, or when `stop` of the answer is true.
        Raises `ModelError` for an empty prompt.
        """
        answers: list[list[int]] = [[] for _ in prompts]
        for batch in self._batches([len(prompt) for prompt in prompts]):
            for index, answer in zip(
                batch, self._answer([prompts[i] for i in batch], max_tokens, stop_ids, stop), strict=True
            ):
                answers[index] = answer
        return answers

    def log_likelihoods(self, requests: Sequence[tuple[Ids, Ids]]) -> list[tuple[float, bool]]:
        """Return ln P(continuation | context) of each (context, continuation), and whether it is the greedy one.

        Requests that differ only in their last token are read once.
        Raises `ModelError` for an empty context or continuation.
        """
        rows: dict[bytes, list[int]] = {}
        for index, (context, continuation) in enumerate(requests):
            if not len(context) or not len(continuation):
                raise ModelError("log_likelihoods: a context and a continuation need a token each; begin with BOS")
            read = np.concatenate([np.asarray(context, np.int64), np.asarray(continuation[:-1], np.int64)])
            rows.setdefault(read.tobytes(), []).append(index)
        texts = [np.frombuffer(key, dtype=np.int64) for key in rows]
        members = list(rows.values())
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for batch in self._batches([len(text) for text in texts]):
            # first positions whose logits are needed: those of the longest continuation of each text
            starts = [len(texts[i]) - max(len(requests[r][1]) for r in members[i]) for i in batch]
            logits = self._tails([texts[i] for i in batch], starts)
            for row, index in enumerate(batch):
                for request in members[index]:
                    wanted = torch.as_tensor(np.asarray(requests[request][1], np.int64), device=self.device)
                    log_p = logits[row][-len(wanted) :].log_softmax(-1)
                    score = log_p.gather(1, wanted.unsqueeze(1)).sum().item()
                    results[request] = (score, bool((log_p.argmax(-1) == wanted).all()))
        return results

    @torch.no_grad()
    def losses(self, ids: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
        """Yield the losses in nats of tokens 1 … L - 1 of ids int64 [B, L], in arrays float64 [B, n]."""
        tokens = torch.as_tensor(ids)
        state: StreamState | None = None
        chunk = self._chunk(len(tokens))
        for start in range(0, tokens.size(1) - 1, chunk):
            part = tokens[:, start : start + chunk + 1].to(self.device)
            hidden, state = self.net.hidden(part[:, : min(chunk, tokens.size(1) - 1 - start)], state=state)
            labels = part[:, 1 : hidden.size(1) + 1]
            loss = F.cross_entropy(self._logits(hidden).flatten(0, 1), labels.flatten(), reduction="none")
            self.advance(labels.numel())
            yield loss.view_as(labels).double().cpu().numpy()

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield batches of at most `batch_size` indices of samples of about equal length."""
        order = sorted(range(len(lengths)), key=lambda index: lengths[index])
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _chunk(self, batch: int) -> int:
        segment = self.net.config.segment_length
        return max(1, self.chunk_tokens // (batch * segment)) * segment

    def _logits(self, hidden: Tensor) -> Tensor:
        """Return logits, fp32 [..., V], of hidden [..., D]."""
        return self.net.tp.gather(self.net.head.logits(hidden)).float()

    @torch.no_grad()
    def _answer(
        self, prompts: Sequence[Ids], max_tokens: int, stop_ids: Sequence[int], stop: Callable[[list[int]], bool]
    ) -> list[list[int]]:
        tokens, ends = _padded(prompts)
        answers: list[list[int]] = [[] for _ in prompts]
        done = [max_tokens == 0] * len(prompts)
        state: StreamState | None = None
        position, chunk = 0, self._chunk(len(prompts))
        while not all(done):
            reading = [end for end, finished in zip(ends, done, strict=True) if not finished and end > position]
            answering = any(not finished and end <= position for end, finished in zip(ends, done, strict=True))
            # when one stream answers, all streams advance by one token
            step = 1 if answering else min(chunk, min(reading) - position)
            part = torch.as_tensor(tokens[:, position : position + step], device=self.device)
            hidden, state = self.net.hidden(part, state=state)
            self.advance(sum(max(0, min(end, position + step) - position) for end in ends))
            position += step
            turn = [row for row, end in enumerate(ends) if end <= position and not done[row]]
            if not turn:
                continue
            if position == tokens.shape[1]:
                tokens = np.pad(tokens, ((0, 0), (0, max_tokens)))
            chosen = self._logits(hidden[turn, -1]).argmax(-1).tolist()
            for row, token in zip(turn, chosen, strict=True):
                if token in stop_ids:
                    done[row] = True
                    continue
                answers[row].append(token)
                tokens[row, position] = token
                done[row] = len(answers[row]) == max_tokens or stop(answers[row])
        return answers

    @torch.no_grad()
    def _tails(self, texts: Sequence[Ids], starts: Sequence[int]) -> list[Tensor]:
        """Return the logits, fp32 [n, V], of each text from position starts[i] to its end."""
        tokens, ends = _padded(texts)
        tails: list[list[Tensor]] = [[] for _ in texts]
        state: StreamState | None = None
        chunk = self._chunk(len(texts))
        for position in range(0, tokens.shape[1], chunk):
            part = torch.as_tensor(tokens[:, position : position + chunk], device=self.device)
            hidden, state = self.net.hidden(part, state=state)
            self.advance(sum(max(0, min(end, position + chunk) - position) for end in ends))
            for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
                wanted = slice(max(0, start - position), max(0, min(chunk, end - position)))
                if wanted.start < wanted.stop:
                    tails[row].append(self._logits(hidden[row, wanted]))
        return [torch.cat(parts) for parts in tails]


def encode_pair(encode: Callable[[str], list[int]], context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the ids of a context and its continuation, separated as in lm-evaluation-harness.

    White space at the context's end belongs to the continuation, and both are encoded as one text.
    """
    bare = context.rstrip()
    continuation, context = context[len(bare) :] + continuation, bare
    before = encode(context)
    return before, encode(context + continuation)[len(before) :]


def _padded(texts: Sequence[Ids]) -> tuple[NDArray[np.int64], list[int]]:
    """Return the texts, int64 [B, longest], padded with zeros that no token sees, and their lengths."""
    ends = [len(text) for text in texts]
    if min(ends) == 0:
        raise ModelError("prompt: it has no token; begin with the tokenizer's BOS")
    tokens = np.zeros((len(texts), max(ends)), dtype=np.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    return tokens, ends
