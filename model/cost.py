"""How much a model computes: the basis of MFU and of planning."""

from model.config import ModelConfig


def flops_per_token(config: ModelConfig, memory_on: bool) -> float:
    """Training FLOPs (forward and backward) of one token: 6 per weight of a matrix product, 12 per attended key.

    Embedding look-ups, norms and activations are not counted; recomputation is not counted either (it is not model
    work).  Attention counts the half of the window that the causal mask leaves.
    """
    size, width = config.hidden_size, config.head_width
    attention = size * width * (2 * config.num_heads + 2 * config.num_kv_heads)
    weights = config.num_layers * (attention + 3 * size * config.ffn_size) + size * config.vocab_size
    window = config.segment_length * (config.attention_span - 0.5)
    products = 2 * config.num_layers * config.num_heads * width * window  # scores and their use
    if memory_on:
        hosts = len(config.memory.hosts(config.num_layers))
        weights += hosts * 6 * size * size
        # addresses of query and key, read, write: four products of T x N with d per head
        products += hosts * 4 * config.memory.slots * size
    return 6.0 * (weights + products)
