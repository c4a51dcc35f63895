"""RMT, one segment, layer, query and key after another: a list of items, each a vector that knows what it is."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model import LanguageModel, ModelConfig
from tests.reference import llama
from tests.reference.llama import Weights


@dataclass(frozen=True)
class Item:
    kind: str  # carried, initial, token, write
    document: int | None  # of tokens and write vectors
    position: int  # rotary
    x: Tensor


def forward(net: LanguageModel, input_ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Logits fp64 [B, L, V] of `net`'s weights."""
    return llama.each_stream(net, input_ids, document_ids, one_stream)


def one_stream(config: ModelConfig, weights: Weights, ids: list[int], documents: list[int]) -> Tensor:
    first = list(weights["layers.0.memory.tokens"])
    carried, owner, logits = first, None, []
    for begin in range(0, len(ids), config.segment_length):
        part = slice(begin, begin + config.segment_length)
        tokens, mine = ids[part], documents[part]
        items = [Item("carried", None, i - 2 * len(first), x) for i, x in enumerate(carried)]
        items += [Item("initial", None, i - len(first), x) for i, x in enumerate(first)]
        items += [Item("token", mine[t], t, weights["embedding.weight"][token]) for t, token in enumerate(tokens)]
        if len(tokens) == config.segment_length:
            begins = carried if mine[-1] == owner else first
            items += [Item("write", mine[-1], len(tokens) + i, x) for i, x in enumerate(begins)]
        for layer in range(config.num_layers):
            items = block(config, weights, f"layers.{layer}.", items, owner)
        out = [item.x for item in items if item.kind == "token"]
        logits += [weights["head.weight"] @ llama.norm(config, weights["final_norm.weight"], x) for x in out]
        if len(tokens) == config.segment_length:
            carried, owner = [item.x for item in items if item.kind == "write"], mine[-1]
    return torch.stack(logits)


def sees(query: Item, key: Item, owner: int | None) -> bool:
    """Whether `query` looks at `key`, which stands at or before it."""
    if query.kind in ("carried", "initial"):
        return key.kind == query.kind
    if key.kind == "carried":
        return query.document == owner
    if key.kind == "initial":
        return query.document != owner
    return query.document == key.document


def block(config: ModelConfig, weights: Weights, prefix: str, items: list[Item], owner: int | None) -> list[Item]:
    normed = [llama.norm(config, weights[prefix + "attention_norm.weight"], item.x) for item in items]
    width, group = config.head_width, config.num_heads // config.num_kv_heads
    rows = weights[prefix + "attention.qkv.weight"].split(width)
    after = []
    for t, item in enumerate(items):
        visible = [u for u in range(t + 1) if sees(item, items[u], owner)]
        context = []
        for head in range(config.num_heads):
            kv_head, number = divmod(head, group)
            at = kv_head * (group + 2)
            query = llama.rotate(config, rows[at + number] @ normed[t], item.position)
            keys = [llama.rotate(config, rows[at + group] @ normed[u], items[u].position) for u in visible]
            shares = torch.stack([torch.exp(query @ key / math.sqrt(width)) for key in keys])
            opened = weights[prefix + "memory.open"][head]
            gates = [
                opened if item.kind == "token" and items[u].kind in ("carried", "initial") else 1.0 for u in visible
            ]
            shares = torch.stack([share * gate for share, gate in zip(shares, gates, strict=True)])
            shares = shares / shares.sum()
            values = [rows[at + group + 1] @ normed[u] for u in visible]
            context.append(sum(share * value for share, value in zip(shares, values, strict=True)))
        x = item.x + weights[prefix + "attention.out.weight"] @ torch.cat(context)
        h = llama.norm(config, weights[prefix + "mlp_norm.weight"], x)
        after.append(replace(item, x=x + llama.swiglu(weights, prefix + "mlp.", h)))
    return after
