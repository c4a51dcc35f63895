"""What a reference costs as parameters, as explicit memory and as text in the prompt (Memory3, sections 2 and A).

Costs are closed formulas of the configuration, in floating-point operations or bytes, without torch. They follow the
paper's conventions, so that its figures come out: a product of n by m numbers is 2nm operations; attention over a text
of R tokens counts all R^2 pairs; the last block counts its attention and not its feed-forward; parameters learn a text
by one training step on it (three forward passes, with the output head, in a long context).
"""

import math
from dataclasses import dataclass

from model.config import ExplicitConfig, ModelConfig


@dataclass(frozen=True)
class KnowledgeCosts:
    """Operations for one reference: once to write it, and each time that a chunk reads it."""

    implicit_write: float
    explicit_write: float
    explicit_read: float
    rag_read: float

    def of(self, uses: float) -> dict[str, float]:
        """Return the operations of each form for a reference that `uses` chunks read."""
        return {
            "implicit": self.implicit_write,
            "explicit": self.explicit_write + self.explicit_read * uses,
            "rag": self.rag_read * uses,
        }

    @property
    def crossover(self) -> tuple[float, float]:
        """(fewest, most) uses between which explicit memory costs least; below text does, above parameters do.

        Explicit memory never costs least when fewest is above most.
        """
        from_text = self.explicit_write / (self.rag_read - self.explicit_read)
        return from_text, (self.implicit_write - self.explicit_write) / self.explicit_read


def knowledge_costs(config: ModelConfig, context: int = 2048) -> KnowledgeCosts:
    """Return the costs of a whole reference (`explicit.reference_length` tokens) for a model of this shape.

    Args: context: tokens of a training sample; a token attends to half of them on average.
    """
    explicit = _explicit(config)
    tokens, attention = explicit.reference_length, config.num_heads * config.head_width
    depth = explicit.memory_layers(config.num_layers)[-1] + 1
    trained = config.num_layers * sum(_block(config)) + config.hidden_size * config.vocab_size
    attended = 2 * config.num_layers * attention * context / 2
    reads = (
        len(explicit.heads(config.num_kv_heads)) / config.num_kv_heads * len(explicit.memory_layers(config.num_layers))
    )
    return KnowledgeCosts(
        implicit_write=3 * 2 * tokens * (trained + attended),
        explicit_write=_encoding(config, depth, tokens),
        explicit_read=4 * explicit.chunk_length * explicit.tokens * attention * reads,
        rag_read=_encoding(config, config.num_layers, tokens),
    )


def memory_bytes(config: ModelConfig, item: float = 2) -> float:
    """Return the bytes of one reference's explicit memory; item: bytes of a number (bf16: 2)."""
    explicit = _explicit(config)
    layers, heads = len(explicit.memory_layers(config.num_layers)), len(explicit.heads(config.num_kv_heads))
    return math.prod((layers, 2, heads, explicit.tokens, config.head_width)) * item


def sparsity(config: ModelConfig) -> float:
    """Return the keys and values of all tokens, query heads and layers divided by those that are kept."""
    explicit = _explicit(config)
    everything = config.num_layers * config.num_heads * explicit.reference_length
    kept = len(explicit.memory_layers(config.num_layers)) * len(explicit.heads(config.num_kv_heads)) * explicit.tokens
    return everything / kept


def _encoding(config: ModelConfig, depth: int, tokens: int) -> float:
    """Operations of the first `depth` blocks on a text of `tokens` tokens, without the last block's feed-forward."""
    attention, feed_forward = _block(config)
    pairs = 2 * config.num_heads * config.head_width * tokens  # of a token: scores, and the weighted sum of values
    return 2 * tokens * (depth * (attention + pairs) + (depth - 1) * feed_forward)


def _block(config: ModelConfig) -> tuple[int, int]:
    """Weights of a block's attention and of its feed-forward."""
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    return config.hidden_size * config.head_width * heads, 3 * config.hidden_size * config.ffn_size


def _explicit(config: ModelConfig) -> ExplicitConfig:
    assert config.explicit is not None, "a model without explicit memory"
    return config.explicit
