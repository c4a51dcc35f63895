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
        hosts, kind = len(config.memory.hosts(config.num_layers)), config.memory.kind
        weights += hosts * {"none": 0, "lm2": 6, "delta": 5, "rmt": 0}[kind] * size * size
        products += hosts * _memory_products(config)
    total = 6.0 * (weights + products)
    if memory_on and config.memory.kind == "rmt":  # read and write vectors pass through the decoder like tokens
        total *= 1 + 2 * config.slots / config.segment_length
    return total


def _memory_products(config: ModelConfig) -> float:
    """Multiply-adds of one token in one block's memory that are no weights."""
    size, width = config.hidden_size, config.hidden_size // config.memory.heads
    if config.memory.is_depth:
        return config.segment_length * size  # scores and their use, half of the segment each
    if config.memory.kind == "lm2":
        return 4 * config.slots * size  # addresses of query and key, write, read
    if config.memory.kind == "delta":
        chunk = min(config.segment_length, 64)
        return size * (3 * width + 1.5 * chunk)  # read, P and Q; the chunk's system and its solution
    return 0.0
