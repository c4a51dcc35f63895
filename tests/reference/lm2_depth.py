"""The published LM2, one segment, layer, token and head after another.

Slot t of a segment belongs to token t.  It comes from the same place of the segment before, if that held the same
document, else from the identity; each block's token t reads the slots of its own document at places up to t, as they
enter the block, and rewrites its own.
"""

import math

import torch
from torch import Tensor

from model import LanguageModel, ModelConfig
from tests.reference import llama
from tests.reference.llama import Weights


def forward(net: LanguageModel, input_ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Logits fp64 [B, L, V] of `net`'s weights."""
    return llama.each_stream(net, input_ids, document_ids, one_stream)


def one_stream(config: ModelConfig, weights: Weights, ids: list[int], documents: list[int]) -> Tensor:
    bank: dict[int, tuple[int, Tensor]] = {}  # place -> (document, slot)
    logits = []
    for begin in range(0, len(ids), config.segment_length):
        part = slice(begin, begin + config.segment_length)
        mine = documents[part]
        slots = []
        for place, document in enumerate(mine):
            identity = torch.zeros(config.hidden_size).double()
            identity[place % config.hidden_size] = 1
            owner, slot = bank.get(place, (document, identity))
            slots.append(slot if owner == document else identity)
        hidden = [weights["embedding.weight"][token] for token in ids[part]]
        for layer in range(config.num_layers):
            hidden, slots = block(config, weights, f"layers.{layer}.", hidden, slots, mine)
        bank |= {place: (mine[place], slot) for place, slot in enumerate(slots)}
        logits += [weights["head.weight"] @ llama.norm(config, weights["final_norm.weight"], x) for x in hidden]
    return torch.stack(logits)


def block(
    config: ModelConfig, weights: Weights, prefix: str, hidden: list[Tensor], slots: list[Tensor], documents: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    normed = [llama.norm(config, weights[prefix + "attention_norm.weight"], x) for x in hidden]
    attended = llama.attention(config, weights, prefix + "attention.", normed, documents)
    hidden = [x + y for x, y in zip(hidden, attended, strict=True)]
    memory = {n.removeprefix(prefix + "memory."): w for n, w in weights.items() if n.startswith(prefix + "memory.")}
    new_hidden, new_slots = [], []
    for t, x in enumerate(hidden):
        e = llama.norm(config, memory["norm.weight"], x)
        visible = [i for i in range(t + 1) if documents[i] == documents[t]]
        e_mem = read(config, memory, e, [slots[i] for i in visible])
        g_out = torch.sigmoid(memory["gate_out"] @ e_mem)
        g_in = torch.sigmoid(memory["gate_in"] @ e)
        g_forget = torch.sigmoid(memory["gate_forget"] @ e_mem + memory["gate_forget_bias"])
        x = x + memory["scale"] * g_out * e_mem
        new_slots.append(g_in * torch.tanh(e_mem) + g_forget * slots[t])
        new_hidden.append(
            x + llama.swiglu(weights, prefix + "mlp.", llama.norm(config, weights[prefix + "mlp_norm.weight"], x))
        )
    return new_hidden, new_slots


def read(config: ModelConfig, memory: Weights, e: Tensor, slots: list[Tensor]) -> Tensor:
    width = config.hidden_size // config.memory.heads
    parts = []
    top_k = config.memory.model_dump()["top_k"]
    for head in range(config.memory.heads):
        rows = slice(head * width, (head + 1) * width)
        q = memory["query.weight"][rows] @ e
        scores = torch.stack([q @ (memory["key.weight"][rows] @ slot) / math.sqrt(width) for slot in slots])
        if top_k is not None and top_k < len(slots):
            scores = scores.where(scores >= scores.sort(descending=True).values[top_k - 1], -math.inf)
        parts.append(sum(a * (memory["value.weight"][rows] @ s) for a, s in zip(scores.softmax(0), slots, strict=True)))
    return torch.cat(parts)
