"""How many numbers a model holds and how much it computes: the basis of MFU, of planning and of the pipeline's cut.

Everything is a closed formula of the configuration; tests hold the counts to models that are really built.  A list with
an entry for each layer follows `model.stages.flat_layers`: embedding, decoder layer x n, norm, head.
"""

import math
from dataclasses import dataclass
from typing import Literal

from model.config import ModelConfig

# logits that `model.loss` computes at once, by device: enough rows for fast products, few enough to fit
LOSS_BLOCK = {"cpu": 2**26, "cuda": 2**29}


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters: `split` over the tensor-parallel ranks, `whole` on each of them; memory: part of both."""

    split: int = 0
    whole: int = 0
    memory_split: int = 0
    memory_whole: int = 0

    def __add__(self, other: "Parameters") -> "Parameters":
        return Parameters(*(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return self.split, self.whole, self.memory_split, self.memory_whole

    @property
    def memory(self) -> int:
        """Parameters of the memory, of all ranks."""
        return self.memory_split + self.memory_whole

    @property
    def total(self) -> int:
        """Parameters of all ranks."""
        return self.split + self.whole

    def per_rank(self, tensor: int) -> int:
        """Parameters one of `tensor` tensor-parallel ranks holds."""
        return self.split // tensor + self.whole


@dataclass(frozen=True)
class Role:
    """What a decoder layer has beside Llama's.

    hosts: a recurrent memory; reads: it is a memory layer of explicit memory; references: what of them it computes, the
    whole block, or in the last memory layer only keys and values.
    """

    hosts: bool = False
    reads: bool = False
    references: Literal["none", "whole", "keys"] = "none"


def roles(config: ModelConfig, memory_on: bool) -> list[Role]:
    """The role of each decoder layer."""
    if not memory_on:
        return [Role()] * config.num_layers
    hosts = config.memory.memory_layers(config.num_layers)
    reads = config.explicit.memory_layers(config.num_layers) if config.explicit else ()
    last = max(reads, default=-1)
    return [
        Role(i in hosts, i in reads, "whole" if i < last else "keys" if i == last else "none")
        for i in range(config.num_layers)
    ]


def layer_parameters(config: ModelConfig, memory_on: bool) -> list[Parameters]:
    """Parameters of each layer.  A tied head counts with the embedding; a last stage apart from it holds a copy."""
    hosts = config.memory.memory_layers(config.num_layers) if memory_on else frozenset()
    table = Parameters(split=config.vocab_size * config.hidden_size)
    backbone = Parameters(split=sum(_backbone_weights(config)), whole=2 * config.hidden_size)
    decoders = [
        backbone + _memory(config, first=i == min(hosts)) if i in hosts else backbone for i in range(config.num_layers)
    ]
    head = Parameters() if config.tie_embeddings else table
    return [table, *decoders, Parameters(whole=config.hidden_size), head]


def count_parameters(config: ModelConfig, memory_on: bool = True) -> Parameters:
    """Parameters of the whole model."""
    return sum(layer_parameters(config, memory_on), Parameters())


def flops_per_token(config: ModelConfig, memory_on: bool, document_tokens: float = math.inf) -> float:
    """Training FLOPs (forward and backward) of one token: 6 per weight of a matrix product, 12 per attended key.

    Embedding look-ups, norms and activations are not counted; recomputation is not counted either (it is not model
    work).  Attention counts the half of the window that the causal mask leaves, and of that no more than documents of
    `document_tokens` leave.
    """
    return sum(stage_costs(config, memory_on, document_tokens))


def stage_costs(config: ModelConfig, memory_on: bool, document_tokens: float = math.inf) -> list[float]:
    """Training FLOPs of one token in each layer: what `training.planning.cut_stages` balances."""
    window = min(config.segment_length * (config.attention_span - 0.5), document_tokens / 2)
    attention = 2 * config.num_heads * config.head_width * window  # scores and their use
    backbone = 6.0 * (sum(_backbone_weights(config)) + attention)
    memory = 6.0 * (config.memory.weights(config) + config.memory.products(config))
    if memory_on:
        backbone *= 1 + config.memory.extra_tokens(config) / config.segment_length
    decoders = [
        backbone + (memory if role.hosts else 0.0) + 6.0 * _explicit_products(config, role)
        for role in roles(config, memory_on)
    ]
    return [0.0, *decoders, 0.0, 6.0 * config.hidden_size * config.vocab_size]


def _backbone_weights(config: ModelConfig) -> tuple[int, int]:
    """Weights of a block's attention and of its feed-forward."""
    size, heads = config.hidden_size, 2 * config.num_heads + 2 * config.num_kv_heads
    return size * config.head_width * heads, 3 * size * config.ffn_size


def _memory(config: ModelConfig, first: bool) -> Parameters:
    """One block's memory; `first`: of the blocks that host one."""
    split, whole = config.memory.parameters(config, first)
    return Parameters(split, whole, split, whole)


def _explicit_products(config: ModelConfig, role: Role) -> float:
    """Multiply-adds that explicit memory adds to one token in a block: the token's own reads, and its share of the
    reference that its chunk brings."""
    explicit = config.explicit
    if explicit is None or role.references == "none":
        return 0.0
    width, length = config.num_heads * config.head_width, explicit.reference_length
    attention, feed_forward = _backbone_weights(config)
    projections = config.hidden_size * config.head_width * (config.num_heads + 2 * config.num_kv_heads)
    passing = attention + feed_forward + width * length  # attends to half of the reference, scores and their use
    each: float = projections if role.references == "keys" else passing
    reads = 0.0
    if role.reads:
        each += width * length / 3  # received attention: scores, forward only
        reads = 2 * width * explicit.references * explicit.tokens
    return each * length / explicit.chunk_length + reads
