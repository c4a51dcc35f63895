"""What the memories computed while the model read one stream of tokens, in a form that all kinds share.

All numbers are tensors that `model.memory.interface.recording` kept of the model's own forward pass, or computed from
them. `Reading.error` is the largest difference between a computed read and the model's.

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
        """Return the share of each slot in a read, [R, N] in 0..1, mean over heads.

        For softmax memories (lm2 depth, rmt) it is the address itself. Memories through time have no softmax; their
        share is the address times the norm of the slot's content, divided by the sum. An empty bank gives zeros.
        """
        if not self.writes or bank is None:
            return address.mean(dim=1)
        weight = address * bank.norm(dim=-1)  # [R, H, N]
        return (weight / weight.sum(dim=-1, keepdim=True).clamp(min=1e-12)).mean(dim=1)


@torch.no_grad()
def read(net: LanguageModel, ids: Sequence[int]) -> tuple[list[Reading], Tensor]:
    """Run `ids`, one document, through `net`; return every hosting block's reading, and the logits fp32 [L, V].

    Raises `ModelError` for a kind of memory without `Memory.reading`.
    """
    device = next(net.parameters()).device
    with recording(net) as tapes:
        logits = net(torch.tensor([list(ids)], device=device)).logits[0].cpu()
    hosts = sorted(net.config.memory.memory_layers(net.config.num_layers)) if net.memory_on else []
    blocks = zip(hosts, memories(net), tapes, strict=True)
    return [Reading(layer=layer, **vars(memory.reading(tape))) for layer, memory, tape in blocks], logits
