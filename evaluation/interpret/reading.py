"""What the memories computed while one stream of tokens was read, in a form all kinds share.

Everything here comes from the tensors that `model.memory.interface.recording` kept of the model's own forward pass, or
is computed from them; `Reading.error` says how far a computed read is from the one the model made.

R reads, H heads, N slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model import LanguageModel
from model.memory.interface import memories, recording
from model.memory.reading import MemoryReading


@dataclass(frozen=True)
class Reading(MemoryReading):
    """The reading of one decoder block."""

    layer: int = 0  # number of the block

    def share(self, address: Tensor, bank: Tensor | None) -> Tensor:
        """How much of a read comes from each slot, [R, N] in 0..1, mean over heads.

        Softmax memories (lm2 depth, rmt): the address itself. Those through time have no softmax: address times the
        norm of what the slot holds, over the sum; an empty bank gives zeros.
        """
        if not self.writes or bank is None:
            return address.mean(dim=1)
        weight = address * bank.norm(dim=-1)  # [R, H, N]
        return (weight / weight.sum(dim=-1, keepdim=True).clamp(min=1e-12)).mean(dim=1)


@torch.no_grad()
def read(net: LanguageModel, ids: Sequence[int]) -> tuple[list[Reading], Tensor]:
    """Run `ids`, one document, through `net`; every hosting block's reading and the logits fp32 [L, V].

    Raises `ModelError` for a kind of memory that keeps nothing of its reads.
    """
    device = next(net.parameters()).device
    with recording(net) as tapes:
        logits = net(torch.tensor([list(ids)], device=device)).logits[0].cpu()
    hosts = sorted(net.config.memory.memory_layers(net.config.num_layers)) if net.memory_on else []
    found = zip(hosts, memories(net), tapes, strict=True)
    return [Reading(layer=layer, **vars(memory.reading(tape))) for layer, memory, tape in found], logits
