"""Reading and writing text with references that are retrieved as the text goes on (Memory3, inference).

Every 64 tokens a chunk of each stream drops the references it had and gets new ones.  A prompt's chunk asks with its
own tokens, which are given and not predicted; a chunk that is being written asks with the 64 tokens before it.  The
last chunk of a prompt may be open: what is written there goes on with what the prompt found.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from model.errors import ModelError
from model.explicit.references import References
from model.generation import PREFILL_TOKENS, Sampling
from model.network import LanguageModel
from model.state import StreamState

Query = Sequence[int]


class Source(Protocol):
    """Where memories come from: a retriever and a bank."""

    each: int

    def find(self, queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
        """(memories [n, each, L_mem, 2, H_kv, k, d], lengths int64 [n, each]; 0: none) for n queries of tokens."""
        ...

    def prefetch(self, queries: Sequence[Query]) -> None:
        """Begins to bring what these queries will find; returns at once."""
        ...


class RetrievingReader:
    """B streams at one position, whose chunks read what `source` finds.

    known: the tokens of each stream, its prompt and what was added; `position`: how many of them are read.
    shifted: prompts too ask with the tokens before the chunk, so that no token's loss knows of itself.
    """

    def __init__(
        self, net: LanguageModel, source: Source | None, prompts: Sequence[Query], shifted: bool = False
    ) -> None:
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise ModelError("prompt: it has no token; begin with the tokenizer's BOS")
        if source is not None and net.explicit is None:
            raise ModelError("references: the model has no explicit memory, or has it off; set model.explicit")
        self.net, self.source, self.shifted = net, source, shifted
        self.known = [list(prompt) for prompt in prompts]
        self.position = 0
        self._given = [0 if shifted else len(prompt) for prompt in prompts]
        self._state: StreamState | None = None
        self._chunk = net.explicit.chunk_length if net.explicit is not None else 1

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @torch.no_grad()
    def read(self, count: int) -> Tensor:
        """Read the next `count` tokens of every stream (0 where a shorter one has ended); hidden [B, count, D]."""
        begin, end = self.position, self.position + count
        rows = [known[begin:end] + [0] * (end - max(begin, min(end, len(known)))) for known in self.known]
        references = self._references(begin, end)
        if self.source is not None:
            self._prefetch(end, count)
        tokens = torch.tensor(rows, dtype=torch.int64, device=self.device)
        hidden, self._state = self.net.hidden(tokens, state=self._state, references=references)
        self.position = end
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 [..., V] of hidden [..., D]."""
        return self.net.tp.gather(self.net.head.logits(hidden)).float()

    def _begun(self, begin: int, end: int) -> range:
        """Numbers of the chunks that begin in [begin, end)."""
        return range(-(-begin // self._chunk), -(-end // self._chunk))

    def _query(self, row: int, chunk: int) -> list[int]:
        """The last 64 tokens that the chunk may ask with: up to its own end in a prompt, else before it."""
        begin = chunk * self._chunk
        known, given = self.known[row], self._given[row]
        end = min(begin + self._chunk, given) if given > begin else min(begin, len(known))
        ended = len(known) < begin  # nobody reads what comes after
        return [] if ended else known[max(0, end - self._chunk) : end]

    def _references(self, begin: int, end: int) -> References | None:
        chunks = self._begun(begin, end)
        if self.source is None or not chunks:
            return None
        queries = [self._query(row, chunk) for row in range(len(self.known)) for chunk in chunks]
        memories, lengths = self.source.find(queries)
        shape = len(self.known), len(chunks) * self.source.each
        return References(
            lengths.view(shape), memories=memories.view(*shape, *memories.shape[2:]), each=self.source.each
        )

    def _prefetch(self, end: int, count: int) -> None:
        """What comes next: of prompts the chunks after this call's; of what is being written, three quarters through
        a chunk, what it looks like then (the last tokens seldom change what is found)."""
        assert self.source is not None
        if count > 1:
            chunks = [c for c in self._begun(end, end + count) if any(g > c * self._chunk for g in self._given)]
            queries = [self._query(row, c) for row in range(len(self.known)) for c in chunks]
        elif end % self._chunk == 3 * self._chunk // 4:
            queries = [known[-self._chunk :] for known in self.known if len(known) >= end]
        else:
            return
        if any(queries):
            self.source.prefetch(queries)


@torch.no_grad()
def generate_with_memory(
    net: LanguageModel,
    prompts: Sequence[Query],
    source: Source | None,
    max_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    stop_id: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Yield (stream, token): up to `max_tokens` after each of the prompts, which may be of unequal length.

    A stream ends with `stop_id`, which is yielded.  source None: nothing is retrieved.  What a stream gets does not
    depend on the others, greedily; the same seed and prompts give the same text.
    """
    reader = RetrievingReader(net, source, prompts)
    generator = torch.Generator(device=reader.device).manual_seed(seed)
    ends, left = [len(prompt) for prompt in prompts], [max_tokens] * len(prompts)
    segment = net.config.segment_length
    most = max(1, PREFILL_TOKENS // (segment * len(prompts))) * segment
    while any(left):
        alive = [row for row, more in enumerate(left) if more]
        unread = [ends[row] - reader.position for row in alive]
        hidden = reader.read(1 if min(unread) <= 0 else min(most - reader.position % segment, *unread, most))
        turn = [row for row in alive if ends[row] <= reader.position]
        if not turn:
            continue
        drawn = sampling.draw(reader.logits(hidden[turn, -1]), generator).tolist()
        for row, token in zip(turn, drawn, strict=True):
            reader.known[row].append(token)
            left[row] = 0 if token == stop_id else left[row] - 1
            yield row, token
