"""The equations of LM2 flowing through time, one document rule, segment, token, head and slot after another.

Per head, with h the tokens of segment s, M_n the contents of slot n, k_t and q_t positive unit vectors over the slots:

    read     out = W_o (sigmoid(W_out h) * rms(sum_n q_tn M_n))
    write    delta = softplus(W_forget h),  erased by token u from slot n: delta_u k_un^2
             M_n <- exp(-all erased) M_n + sum_t exp(-erased after t) k_tn (sigmoid(W_in h) * tanh(W_c h))_t

A bank belongs to the document of the last token before it; a
token reads only a bank of its own document; a segment is written, when it is complete, by the tokens of its last
token's document, into that document's bank or, where it began in this segment, into the initial one, which is zero.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model import LanguageModel, ModelConfig
from tests.reference import llama
from tests.reference.llama import Weights

Bank = list[list[Tensor]]  # [H][N], each [d]


def forward(net: LanguageModel, input_ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Logits fp64 [B, L, V] of `net`'s weights."""
    return llama.forward(net, input_ids, document_ids, recall)


def recall(
    config: ModelConfig, weights: Weights, prefix: str, tokens: list[Tensor], documents: list[int]
) -> list[Tensor]:
    """What each token of one stream recalls."""
    memory = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    bank, owner, recalled = initial_bank(config), None, []
    for begin in range(0, len(tokens), config.segment_length):
        segment = list(zip(tokens, documents, strict=True))[begin : begin + config.segment_length]
        for h, document in segment:
            recalled.append(read(config, memory, h, bank if document == owner else initial_bank(config)))
        if len(segment) == config.segment_length:
            last = segment[-1][1]
            writers = [h for h, document in segment if document == last]
            bank = written(config, memory, writers, bank if last == owner else initial_bank(config))
            owner = last
    return recalled


def slots_of(config: ModelConfig) -> int:
    slots = config.memory.slots
    assert slots is not None
    return slots


def initial_bank(config: ModelConfig) -> Bank:
    width = config.hidden_size // config.memory.heads
    return [[torch.zeros(width).double() for _ in range(slots_of(config))] for _ in range(config.memory.heads)]


def read(config: ModelConfig, memory: Weights, h: Tensor, bank: Bank) -> Tensor:
    parts = []
    for head in range(config.memory.heads):
        q = address(config, memory["query.weight"] @ h, head)
        found = sum(share * slot for share, slot in zip(q, bank[head], strict=True))
        found = found / torch.sqrt((found * found).mean() + 0.1)
        parts.append(of_head(config, gate(memory, "gate_out", h), head) * found)
    return memory["out.weight"] @ torch.cat(parts)


def written(config: ModelConfig, memory: Weights, tokens: list[Tensor], bank: Bank) -> Bank:
    following: Bank = []
    for head in range(config.memory.heads):
        keys = [address(config, memory["key.weight"] @ h, head) for h in tokens]
        delta = [F.softplus(memory["gate_forget.weight"][head] @ h + memory["gate_forget_bias"][head]) for h in tokens]
        slots = []
        for n in range(slots_of(config)):
            erased = [delta[t] * keys[t][n] ** 2 for t in range(len(tokens))]
            slot = torch.exp(-torch.stack(erased).sum()) * bank[head][n]
            for t, h in enumerate(tokens):
                later = erased[t + 1 :]
                kept = torch.exp(-torch.stack(later).sum()) if later else 1.0
                new = gate(memory, "gate_in", h) * torch.tanh(memory["content.weight"] @ h)
                slot = slot + kept * keys[t][n] * of_head(config, new, head)
            slots.append(slot)
        following.append(slots)
    return following


def address(config: ModelConfig, x: Tensor, head: int) -> Tensor:
    """The head's positive unit vector over the slots, [N]."""
    slots = slots_of(config)
    return positive_unit(config, x[head * slots : (head + 1) * slots])


def positive_unit(config: ModelConfig, x: Tensor) -> Tensor:
    """Along elu + 1 of x, which at first has a standard deviation of 1.5."""
    z = 1.5 * x / (config.initial_std(config.hidden_size) * config.hidden_size**0.5)
    feature = torch.where(z > 0, z + 1, torch.exp(z))
    return feature / torch.sqrt(feature @ feature)


def gate(memory: Weights, name: str, h: Tensor) -> Tensor:
    return torch.sigmoid(memory[f"{name}.weight"] @ h + memory[f"{name}_bias"])


def of_head(config: ModelConfig, x: Tensor, head: int) -> Tensor:
    width = config.hidden_size // config.memory.heads
    return x[head * width : (head + 1) * width]
