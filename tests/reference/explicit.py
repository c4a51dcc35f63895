"""Memory3, one reference, one token, one head and one key after another.

Everything is an fp64 vector of one token, `Place` says where it stands.  T tokens of a segment, C of a chunk, R of a
reference at most, k that a head keeps, d head width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model import LanguageModel, ModelConfig
from model.config import ExplicitConfig
from tests.reference.llama import Weights, norm, rotate, sees, swiglu


@dataclass
class ChunkReference:
    """A reference, the chunk that brings it, and the document whose tokens retrieved it (None: every document's)."""

    tokens: list[int]
    chunk: int
    document: int | None = None


@dataclass
class Kept:
    """Key, without position, and value of a token at `place` of a reference's window (the BOS: below 0)."""

    key: Tensor
    value: Tensor
    place: int


def forward(
    net: LanguageModel, ids: list[int], documents: list[int], references: list[ChunkReference], window: int
) -> tuple[Tensor, list[list[list[Kept]]]]:
    """Logits fp64 [L, V] of one stream, and what was kept of each reference in each memory layer by each head,
    [reference][memory layer][head * k]."""
    config, explicit = net.config, net.config.explicit
    assert explicit is not None
    weights: Weights = {name: parameter.double() for name, parameter in net.named_parameters()}
    table, layers = weights["embedding.weight"], explicit.memory_layers(config.num_layers)
    tokens, bos = [table[i] for i in ids], [table[i] for i in explicit.bos]
    texts = [[table[i] for i in reference.tokens] for reference in references]
    kept: list[list[list[Kept]]] = [[] for _ in references]
    for layer in range(config.num_layers):
        block = Block(config, weights, f"layers.{layer}.")
        sink = block.keys(bos, first=-len(bos))
        memories: list[list[list[Kept]]] = [[[] for _ in range(config.num_kv_heads)] for _ in references]
        if layer in layers:
            memories = [block.write(text) for text in texts]
            for before, memory in zip(kept, memories, strict=True):
                before.append([entry for head in memory for entry in head])
        new_texts = [block.alone(text, sink, first=0) for text in texts]
        new_tokens = block.context(tokens, documents, sink, references, memories, window)
        bos, texts, tokens = block.alone(bos, None, first=-len(bos)), new_texts, new_tokens
    head = weights["embedding.weight" if config.tie_embeddings else "head.weight"]
    return torch.stack([head @ norm(config, weights["final_norm.weight"], x) for x in tokens]), kept


class Block:
    """One decoder layer."""

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str) -> None:
        assert config.explicit is not None
        self.config, self.weights, self.prefix = config, weights, prefix
        self.explicit: ExplicitConfig = config.explicit
        self.group = config.num_heads // config.num_kv_heads
        self.rows = weights[prefix + "attention.qkv.weight"].split(config.head_width)

    def normed(self, x: Tensor) -> Tensor:
        return norm(self.config, self.weights[self.prefix + "attention_norm.weight"], x)

    def query(self, x: Tensor, head: int) -> Tensor:
        kv_head, number = divmod(head, self.group)
        return self.rows[kv_head * (self.group + 2) + number] @ self.normed(x)

    def key(self, x: Tensor, kv_head: int) -> Tensor:
        return self.rows[kv_head * (self.group + 2) + self.group] @ self.normed(x)

    def value(self, x: Tensor, kv_head: int) -> Tensor:
        return self.rows[kv_head * (self.group + 2) + self.group + 1] @ self.normed(x)

    def keys(self, tokens: list[Tensor], first: int) -> list[list[Kept]]:
        """[head][token]"""
        heads = range(self.config.num_kv_heads)
        return [[Kept(self.key(x, h), self.value(x, h), first + i) for i, x in enumerate(tokens)] for h in heads]

    def write(self, reference: list[Tensor]) -> list[list[Kept]]:
        """[head][at most k]: the tokens with the most received attention."""
        kept = []
        for kv_head in range(self.config.num_kv_heads):
            scores = self.received(reference, kv_head)
            order = sorted(range(len(reference)), key=lambda j: -scores[j])
            best = order[: self.explicit.tokens]
            kept.append([Kept(self.key(reference[j], kv_head), self.value(reference[j], kv_head), j) for j in best])
        return kept

    def received(self, reference: list[Tensor], kv_head: int) -> list[float]:
        """w_j = sum_i softmax_j(q_i . k_j / sqrt(d)), summed over the query heads of the key head."""
        scores = [0.0] * len(reference)
        for head in range(kv_head * self.group, (kv_head + 1) * self.group):
            for x in reference:
                query = self.query(x, head)
                keys = [self.key(y, kv_head) for y in reference]
                products = [float((query @ key).detach()) / math.sqrt(self.config.head_width) for key in keys]
                weights = [math.exp(p) for p in products]
                if self.explicit.selection == "softmax":
                    weights = [w / sum(weights) for w in weights]
                scores = [s + w for s, w in zip(scores, weights, strict=True)]
        return scores

    def alone(self, tokens: list[Tensor], sink: list[list[Kept]] | None, first: int) -> list[Tensor]:
        """BOS or a reference, behind the BOS `sink`, through the block."""
        keys, out = self.keys(tokens, first), []
        for i, x in enumerate(tokens):
            visible = [(sink[h] if sink else []) + keys[h][: i + 1] for h in range(self.config.num_kv_heads)]
            out.append(self.through(x, first + i, visible))
        return out

    def context(
        self,
        tokens: list[Tensor],
        documents: list[int],
        sink: list[list[Kept]],
        references: list[ChunkReference],
        memories: list[list[list[Kept]]],
        window: int,
    ) -> list[Tensor]:
        """The stream's tokens: BOS and the chunk's references, before the segment, and the causal context."""
        keys, out = self.keys(tokens, 0), []
        for t, x in enumerate(tokens):
            segment_begin = t - t % self.config.segment_length
            chunk = t // self.explicit.chunk_length
            visible = []
            for h in range(self.config.num_kv_heads):
                extra = list(sink[h])
                for reference, memory in zip(references, memories, strict=True):
                    in_sight = chunk - window < reference.chunk <= chunk
                    own = reference.document is None or reference.document == documents[t]
                    if in_sight and own and h in self.explicit.heads(self.config.num_kv_heads):
                        extra += memory[h]
                shift = segment_begin - self.explicit.reference_length
                moved = [Kept(e.key, e.value, e.place + shift) for e in extra]
                visible.append(moved + [keys[h][u] for u in range(t + 1) if sees(self.config, documents, t, u)])
            out.append(self.through(x, t, visible))
        return out

    def through(self, x: Tensor, place: int, visible: list[list[Kept]]) -> Tensor:
        """A token at `place` that sees `visible` [head][key] through attention and feed-forward."""
        context = []
        for head in range(self.config.num_heads):
            query = rotate(self.config, self.query(x, head), place)
            seen = visible[head // self.group]
            scores = torch.stack([query @ rotate(self.config, e.key, e.place) for e in seen])
            shares = (scores / math.sqrt(self.config.head_width)).softmax(dim=0)
            context.append(sum(share * e.value for share, e in zip(shares, seen, strict=True)))
        x = x + self.weights[self.prefix + "attention.out.weight"] @ torch.cat(context)
        return x + swiglu(self.weights, self.prefix + "mlp.", norm(self.config, self.mlp_norm, x))

    @property
    def mlp_norm(self) -> Tensor:
        return self.weights[self.prefix + "mlp_norm.weight"]
