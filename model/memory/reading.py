"""What a memory computed while it read one stream of tokens, in a form that all kinds share.

L tokens read, S banks they read (one a segment), H heads, N slots, d width of a slot.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

Tape = dict[str, list[Tensor]]  # tensors that `Memory.show` was given: by name, one for each call


@dataclass(frozen=True)
class MemoryReading:
    """One block's memory over one document.

    Attributes:
        address: fp32 [L, H, N], the weight of each slot in a token's read; its scale depends on the kind.
        bank: fp32 [S, H, N, d], the slots that each segment's tokens read, or [S, 1, N, D] for slots that are not
            split into heads; None for kinds without a bank.
        recalled: fp32 [L, H, d], the result of each token's read, as the model computed it; None without a bank.
        gates: name -> mean opening, fp32 [L] for gates of tokens, [S] for gates of slots.
        error: largest difference between `recalled` and the product of `address` and `bank`.
        writes: what each token wrote, by name (`evaluation.interpret.retrieval`); empty for kinds whose reads are no
            sum over earlier tokens' writes.
    """

    address: Tensor
    bank: Tensor | None
    recalled: Tensor | None
    gates: dict[str, Tensor]
    error: float
    writes: dict[str, Tensor] = field(default_factory=dict)


def by_token(calls: list[Tensor]) -> Tensor:
    """Join the calls' [1, S, H, n, …] -> fp32 [L, H, …] on the CPU."""
    return torch.cat([x[0].transpose(1, 2).flatten(0, 1) for x in calls]).float().cpu()


def gate_means(tape: Tape) -> dict[str, Tensor]:
    """Return the mean of each recorded gate, fp32 [L] by token, or [S] for gates that have one value a segment."""
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
