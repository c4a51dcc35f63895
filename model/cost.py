"""Parameters and FLOPs of a model, which MFU, planning and the pipeline's cut are based on.

All are closed formulas of the configuration; tests compare the counts with models that are built. A list with an entry
for each layer follows `model.stages.flat_layers`: embedding, decoder layers, norm, head.
"""

import math
from dataclasses import dataclass
from typing import Literal

from model.config import ModelConfig

# logits that `model.loss` computes at once, by device: enough rows for fast products, few enough for the memory
LOSS_BLOCK = {"cpu": 2**26, "cuda": 2**29}


@dataclass(frozen=True)
class Parameters:
    """Counts of parameters.

    split: divided over the tensor-parallel ranks; whole: present on each of them; memory_split and memory_whole: the
    memory's part of these two.
    """

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
        """Parameters of the memory on all tensor-parallel ranks together."""
        return self.memory_split + self.memory_whole

    @property
    def total(self) -> int:
        """Parameters on all tensor-parallel ranks together."""
        return self.split + self.whole

    def per_rank(self, tensor: int) -> int:
        """Return the parameters on one of `tensor` tensor-parallel ranks."""
        return self.split // tensor + self.whole


@dataclass(frozen=True)
class Role:
    """What a decoder layer computes beside a Llama's.

    hosts: it hosts a recurrent memory. reads: it is a memory layer of explicit memory. references: what it computes for
    references, the whole block or, in the last memory layer, only keys and values.
    """

    hosts: bool = False
    reads: bool = False
    references: Literal["none", "whole", "keys"] = "none"


def roles(config: ModelConfig, memory_on: bool) -> list[Role]:
    """Return the role of each decoder layer."""
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
    """Return the parameters of each layer. A tied head counts with the embedding, though a last stage holds a copy."""
    hosts = config.memory.memory_layers(config.num_layers) if memory_on else frozenset()
    table = Parameters(split=config.vocab_size * config.hidden_size)
    backbone = Parameters(split=sum(_backbone_weights(config)), whole=2 * config.hidden_size)
    decoders = [
        backbone + _memory(config, first=i == min(hosts)) if i in hosts else backbone for i in range(config.num_layers)
    ]
    head = Parameters() if config.tie_embeddings else table
    return [table, *decoders, Parameters(whole=config.hidden_size), head]


def count_parameters(config: ModelConfig, memory_on: bool = True) -> Parameters:
    """Return the parameters of the whole model."""
    return sum(layer_parameters(config, memory_on), Parameters())


def flops_per_token(config: ModelConfig, memory_on: bool, document_tokens: float = math.inf) -> float:
    """Return the training FLOPs (forward and backward) of one token: 6 for each weight that multiplies it.

    Attention adds 12 FLOPs for each key that the causal mask leaves on average, per query head and unit of its width;
    documents of `document_tokens` tokens leave no more keys than they have. Embedding look-ups, norms, activations and
    recomputation do not count.
    """
    return sum(stage_costs(config, memory_on, document_tokens))


def stage_costs(config: ModelConfig, memory_on: bool, document_tokens: float = math.inf) -> list[float]:
    """Return the training FLOPs of one token in each layer, which `training.planning.cut_stages` balances."""
    window = min(config.segment_length * (config.attention_span - 0.5), document_tokens / 2)
    attention = 2 * config.num_heads * config.head_width * window  # scores, and the weighted sum of values
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
    """Return the weights of a block's attention and of its feed-forward."""
    size, heads = config.hidden_size, 2 * config.num_heads + 2 * config.num_kv_heads
    return size * config.head_width * heads, 3 * size * config.ffn_size


def _memory(config: ModelConfig, first: bool) -> Parameters:
    """Return the parameters of one block's memory; first: it is the first block that hosts one."""
    split, whole = config.memory.parameters(config, first)
    return Parameters(split, whole, split, whole)


def _explicit_products(config: ModelConfig, role: Role) -> float:
    """Return the multiply-adds that explicit memory adds to one token in a block.

    They are the token's own reads and its share of the reference that its chunk brings.
    """
    explicit = config.explicit
    if explicit is None or role.references == "none":
        return 0.0
    width, length = config.num_heads * config.head_width, explicit.reference_length
    attention, feed_forward = _backbone_weights(config)
    projections = config.hidden_size * config.head_width * (config.num_heads + 2 * config.num_kv_heads)
    # scores and weighted sum take width * length, because a token attends to half of the reference
    passing = attention + feed_forward + width * length
    each: float = projections if role.references == "keys" else passing
    reads = 0.0
    if role.reads:
        each += width * length / 3  # received attention: scores, forward only
        reads = 2 * width * explicit.references * explicit.tokens
    return each * length / explicit.chunk_length + reads
