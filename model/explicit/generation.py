"""Read and generate text with references that are retrieved on the way (Memory3, inference).

Each chunk of C tokens (`explicit.chunk_length`) reads the references that are retrieved when it begins, and no others.
The query of a prompt's chunk is the chunk itself, whose tokens are given and not predicted. The query of a generated
chunk is the C tokens before it. When a prompt ends inside a chunk, the generated rest of that chunk reads the
references that the prompt's part retrieved.
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
    """Retrieves references for queries and returns their explicit memories."""

    each: int  # references of a query

    def find(self, queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
        """Return memories [n, each, L_mem, 2, H_kv, k, d] and lengths int64 [n, each] in tokens (0: none)."""
        ...

    def prefetch(self, queries: Sequence[Query]) -> None:
        """Start to load what these queries will retrieve, and return at once."""
        ...


class RetrievingReader:
    """Reads B streams side by side; each chunk reads the references that `source` retrieves for it.

    known: the token ids of each stream, its prompt and what was appended; position: how many of them are read.
    shifted: the query of a prompt's chunk too is the tokens before it, so that the loss of a token does not depend on
        a query that contains the token.
    Raises `ModelError` for an empty prompt, and for a source with a model whose explicit memory is off.
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
        """Read the next `count` tokens of every stream; return hidden [B, count, D]. An ended stream reads 0s."""
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
        """Return logits, fp32 [..., V], of hidden [..., D]. Collective over the tensor group."""
        return self.net.tp.gather(self.net.head.logits(hidden)).float()

    def _begun(self, begin: int, end: int) -> range:
        """Return the numbers of the chunks that begin at positions [begin, end)."""
        return range(-(-begin // self._chunk), -(-end // self._chunk))

    def _query(self, row: int, chunk: int) -> list[int]:
        """Return the query of a chunk, at most C tokens: up to the chunk's end in a prompt, else up to its begin."""
        begin = chunk * self._chunk
        known, given = self.known[row], self._given[row]
        end = min(begin + self._chunk, given) if given > begin else min(begin, len(known))
        ended = len(known) < begin  # the stream ends before this chunk, so nothing reads its references
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
        """Prefetch the references of the next chunks.

        In a prompt these are the chunks of the next call. In generated text the query of the next chunk is guessed
        when three quarters of this one are written: its last tokens seldom change what is retrieved.
        """
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
    """Yield (stream, token id), up to `max_tokens` tokens for each prompt; prompts may differ in length.

    A stream ends with `stop_id`, which is yielded too. source None: nothing is retrieved. With greedy sampling a
    stream does not depend on the other streams; the same seed and prompts give the same text.
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
