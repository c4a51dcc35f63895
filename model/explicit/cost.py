"""What knowledge costs where it can be: in parameters, explicit memory, or text in the prompt (Memory3, sections 2, A).

The paper's conventions, which give its figures: a product of n by m numbers is 2nm operations; attention over a text of
R tokens counts all R^2 pairs; of the last block that is computed, attention counts and the feed-forward does not;
parameters learn a text by one training step on it (three forward passes, with the output head, in a long context).
Everything is a closed formula of the configuration, in floating-point operations or bytes; no torch.
"""

import math
from dataclasses import dataclass

from model.config import ExplicitConfig, ModelConfig


@dataclass(frozen=True)
class KnowledgeCosts:
    """Operations for one reference: to store it, and each time that a chunk uses it."""

    implicit_write: float
    explicit_write: float
    explicit_read: float
    rag_read: float

    def of(self, uses: float) -> dict[str, float]:
        """Operations of a reference that is used so many times, in each form."""
        return {
            "implicit": self.implicit_write,
            "explicit": self.explicit_write + self.explicit_read * uses,
            "rag": self.rag_read * uses,
        }

    @property
    def crossover(self) -> tuple[float, float]:
        """Explicit memory costs least for numbers of uses between these: below, text in the prompt, above, parameters.

        The first is above the second where it never costs least.
        """
        from_text = self.explicit_write / (self.rag_read - self.explicit_read)
        return from_text, (self.implicit_write - self.explicit_write) / self.explicit_read


def knowledge_costs(config: ModelConfig, context: int = 2048) -> KnowledgeCosts:
    """Costs of a whole reference (`explicit.reference_length` tokens) for a model of this shape.

    Args: context, tokens of a training sample, over whose half a token attends on average.
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
    """Bytes of one reference's explicit memory; item: bytes of a number (bf16: 2)."""
    explicit = _explicit(config)
    layers, heads = len(explicit.memory_layers(config.num_layers)), len(explicit.heads(config.num_kv_heads))
    return math.prod((layers, 2, heads, explicit.tokens, config.head_width)) * item


def sparsity(config: ModelConfig) -> float:
    """How many times smaller it is than the keys and values of all tokens, query heads and layers."""
    explicit = _explicit(config)
    everything = config.num_layers * config.num_heads * explicit.reference_length
    kept = len(explicit.memory_layers(config.num_layers)) * len(explicit.heads(config.num_kv_heads)) * explicit.tokens
    return everything / kept


def _encoding(config: ModelConfig, depth: int, tokens: int) -> float:
    """A text through the first `depth` blocks, the last one's feed-forward left out."""
    attention, feed_forward = _block(config)
    pairs = 2 * config.num_heads * config.head_width * tokens  # scores and their use, a token
    return 2 * tokens * (depth * (attention + pairs) + (depth - 1) * feed_forward)


def _block(config: ModelConfig) -> tuple[int, int]:
    """Weights of a block's attention and of its feed-forward."""
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    return config.hidden_size * config.head_width * heads, 3 * config.hidden_size * config.ffn_size


def _explicit(config: ModelConfig) -> ExplicitConfig:
    assert config.explicit is not None, "a model without explicit memory"
    return config.explicit
