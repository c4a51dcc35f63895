"""What a memory computed while one stream of tokens was read, in a form that all kinds share, from its tape.

L tokens read, S banks they read (one a segment), H heads, N slots, d width of a slot.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

Tape = dict[str, list[Tensor]]  # by name, a tensor a call: what `Memory.show` was given


@dataclass(frozen=True)
class MemoryReading:
    """One block's memory over one document.

    Attributes:
        address: fp32 [L, H, N], the weight with which a token's query asks each slot; see the kind for its scale.
        bank: fp32 [S, H, N, d], what each segment's tokens found in the slots, or [S, 1, N, D] where slots are whole;
            None where there is no bank beside the tokens.
        recalled: fp32 [L, H, d], what each token's read returned, as the model computed it; None as `bank`.
        gates: name -> mean opening, fp32 [L] for gates of tokens, [S] for gates of slots.
        error: largest difference between `recalled` and the same computed from `address` and `bank`.
        writes: how every token changed the bank (`evaluation.interpret.retrieval`); empty for kinds whose reads cannot
            be taken apart into writes.
    """

    address: Tensor
    bank: Tensor | None
    recalled: Tensor | None
    gates: dict[str, Tensor]
    error: float
    writes: dict[str, Tensor] = field(default_factory=dict)


def by_token(calls: list[Tensor]) -> Tensor:
    """Calls' [1, S, H, n, …] -> fp32 [L, H, …] on the CPU."""
    return torch.cat([x[0].transpose(1, 2).flatten(0, 1) for x in calls]).float().cpu()


def gate_means(tape: Tape) -> dict[str, Tensor]:
    """Mean opening of each recorded gate, by token, or by segment for gates that stand once a segment."""
    return {name.removeprefix("gate_"): _mean(x) for name, x in tape.items() if name.startswith("gate_")}


def _mean(calls: list[Tensor]) -> Tensor:
    parts = []
    for x in calls:
        one = x[0].float().cpu()
        if one.dim() == 4:  # [S, H, n or 1, …]
            one = one.transpose(1, 2)
        if one.dim() > 2:
            one = one.flatten(0, 1)  # [S*n or S, …]
        parts.append(one.flatten(1).mean(dim=1))
    return torch.cat(parts)
