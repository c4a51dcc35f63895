"""What is compared: each kind of memory, and two Llamas, at equal parameters."""

from dataclasses import dataclass
from typing import Any, Literal

from model import MemoryConfig, ModelConfig
from model.cost import count_parameters

Kind = Literal["delta", "lm2-time", "lm2-depth", "rmt", "llama-full", "llama-window"]
KINDS: tuple[Kind, ...] = ("delta", "lm2-time", "lm2-depth", "rmt", "llama-full", "llama-window")
OURS: tuple[Kind, ...] = ("delta", "lm2-time")
LLAMAS: tuple[Kind, ...] = ("llama-full", "llama-window")  # measured a second time, with retrieval
TITLES: dict[Kind, str] = {
    "delta": "delta",
    "lm2-time": "LM2, through time",
    "lm2-depth": "LM2, as published",
    "rmt": "RMT",
    "llama-full": "Llama, full attention",
    "llama-window": "Llama, the memory models' window",
}


@dataclass(frozen=True)
class Shape:
    """Sizes all kinds share.

    heads: of attention.  memory_heads, slots: of the memories.  row_length: tokens of a training row, which
    `llama-full` attends to at once.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    heads: int
    memory_heads: int
    slots: int
    row_length: int


# Tokens of a segment, and segments that attention sees.  A sentence that a segment's end cuts in two cannot be
# understood from one segment: two short ones see every sentence whole, at the cost of one long one.  The sequential
# kinds compute one segment after the other, and keep what a segment's own attention sees; `llama-full` sees a row.
SETTINGS: dict[Kind, tuple[int, int]] = {
    "delta": (8, 2),
    "lm2-time": (8, 2),
    "lm2-depth": (32, 1),
    "rmt": (128, 1),
    "llama-full": (0, 1),
    "llama-window": (8, 2),
}


def model_config(kind: Kind, shape: Shape, segment: int) -> ModelConfig:
    """The model of a kind, its feed-forward network widened until it has as many parameters as `delta`'s."""
    plain = _config(kind, shape, segment, _ffn(shape))
    goal = count_parameters(_config("delta", shape, 16, _ffn(shape))).total
    wider = _config(kind, shape, segment, _ffn(shape) + 8)
    own = count_parameters(plain).total
    of_eight = count_parameters(wider).total - own
    return _config(kind, shape, segment, max(8, _ffn(shape) + 8 * round((goal - own) / of_eight)))


def _ffn(shape: Shape) -> int:
    return 8 * round(shape.hidden_size * 8 / 3 / 8)


def _config(kind: Kind, shape: Shape, segment: int, ffn: int) -> ModelConfig:
    changes: dict[str, Any] = {"segment_length": segment}
    match kind:
        case "delta":
            memory = MemoryConfig.model_validate({"kind": "delta", "heads": shape.memory_heads})
        case "lm2-time":
            memory = MemoryConfig.model_validate(
                {"kind": "lm2", "flow": "time", "slots": shape.slots, "heads": shape.memory_heads}
            )
        case "lm2-depth":
            memory = MemoryConfig.model_validate({"kind": "lm2", "flow": "depth", "heads": shape.memory_heads})
        case "rmt":
            memory = MemoryConfig.model_validate({"kind": "rmt", "slots": 16, "rmt_open": 1.0})
        case _:
            memory = MemoryConfig.model_validate({"kind": "none"})
            if kind == "llama-full":
                changes = {"segment_length": shape.row_length, "attention_span": 2}
    return ModelConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        num_heads=shape.heads,
        num_kv_heads=shape.heads,
        ffn_size=ffn,
        tie_embeddings=True,
        memory=memory,
        **changes,
    )
