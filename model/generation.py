"""Generate text token by token. Only the model's state is kept, so memory does not grow with the prompt or the text."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.errors import ModelError
from model.network import LanguageModel
from model.state import StreamState

PREFILL_TOKENS = 4096  # prompt tokens per call, rounded to whole segments, which bounds the memory of a long prompt


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. temperature 0 takes the most likely token; top_k and top_p None keep all tokens.

    Raises `ModelError` for a value outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ModelError(f"temperature: {self.temperature} must not be negative; 0 is greedy")
        if self.top_k is not None and self.top_k < 1:
            raise ModelError(f"top_k: {self.top_k} must be at least 1; leave it out to keep all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ModelError(f"top_p: {self.top_p} must be above 0 and at most 1; leave it out to keep all tokens")

    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a token for each row of logits [B, V]: int64 [B]."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.size(-1):
            least = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if self.top_p is not None:
            ordered, order = logits.sort(dim=-1, descending=True)
            probability = ordered.softmax(dim=-1)
            before = probability.cumsum(dim=-1) - probability  # of all likelier tokens together
            ordered = ordered.masked_fill(before >= self.top_p, float("-inf"))
            logits = torch.full_like(logits, float("-inf")).scatter(-1, order, ordered)
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(-1)


def read(net: LanguageModel, ids: Tensor, state: StreamState | None, keep: int) -> tuple[Tensor, StreamState]:
    """Read ids int64 [B, L]; return the normalised hidden [B, keep, D] of the last `keep` positions, and the state.

    Without gradients it reads part by part, so that memory does not grow with L.
    """
    segment, length = net.config.segment_length, ids.size(1)
    chunk = length if torch.is_grad_enabled() else max(1, PREFILL_TOKENS // segment) * segment
    kept, seen = [], 0
    for part in ids.split(chunk, dim=1):
        hidden, state = net.hidden(part, state=state)
        seen += part.size(1)
        if (wanted := seen - max(length - keep, seen - part.size(1))) > 0:
            kept.append(hidden[:, -wanted:])
    assert state is not None
    return torch.cat(kept, dim=1), state


@torch.no_grad()
def prefill(net: LanguageModel, ids: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
    """Read a prompt int64 [B, L]; return the logits [B, V] of its last position, and the state.

    Collective over the tensor group. Memory does not grow with L.
    """
    hidden, state = read(net, ids, state, keep=1)
    return net.tp.gather(net.head.logits(hidden[:, -1])), state


@torch.no_grad()
def generate(
    net: LanguageModel,
    ids: Tensor,
    max_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    stop_id: int | None = None,
) -> Iterator[Tensor]:
    """Yield up to `max_tokens` tokens int64 [B] after the prompt `ids` [B, L], one at a time.

    It stops when every stream has produced `stop_id`. The same seed gives the same text.
    Raises `ModelError` for an empty prompt.
    """
    if ids.size(1) == 0:
        raise ModelError("prompt: it has no token; begin with the tokenizer's BOS")
    generator = torch.Generator(device=ids.device).manual_seed(seed)
    logits, state = prefill(net, ids)
    stopped = torch.zeros(ids.size(0), dtype=torch.bool, device=ids.device)
    for produced in range(max_tokens):
        token = sampling.draw(logits, generator)
        yield token
        stopped |= token == (-1 if stop_id is None else stop_id)
        if bool(stopped.all()) or produced + 1 == max_tokens:
            return
        logits, state = prefill(net, token.unsqueeze(1), state)
