"""Bytes that the forward pass keeps for the backward pass, and bytes that are needed only while a layer is computed.

They are counted from the operations of `model/`; tests compare the sums with the tensors that torch saves.
B batch, T tokens of a segment, W keys its tokens look at, D hidden, H heads, N slots, d head width, V vocabulary.
"""

from dataclasses import dataclass

from model.config import ModelConfig
from model.cost import LOSS_BLOCK, Role
from model.memory.planning import FP32, RankShare


@dataclass(frozen=True)
class Shape(RankShare):
    """Sizes of what one rank computes for a micro-batch, with those of explicit memory."""

    model: ModelConfig
    memory_on: bool = True

    @property
    def varlen(self) -> bool:
        """Whether attention takes sequence lengths, so that it needs no mask for documents."""
        return self.fused_norms and self.item < FP32 and (self.model.explicit is None or not self.memory_on)

    @property
    def loss_rows(self) -> int:
        """Number of tokens whose logits are computed at once."""
        block = LOSS_BLOCK["cuda" if self.fused_norms else "cpu"]
        return min(self.tokens, max(1, block * self.tensor // self.model.vocab_size))

    @property
    def residual(self) -> int:
        """Bytes of the residual stream of the micro-batch."""
        return self.tokens * self.model.hidden_size * self.item

    @property
    def references(self) -> int:
        """Number of references of the micro-batch's chunks; each is a sequence of its own."""
        explicit = self.model.explicit if self.memory_on else None
        return self.tokens // explicit.chunk_length if explicit else 0

    @property
    def reference_tokens(self) -> int:
        """Number of tokens of these references."""
        return self.references * self.model.explicit.reference_length if self.model.explicit else 0

    @property
    def in_sight(self) -> int:
        """m: number of kept reference tokens that any chunk of a segment sees."""
        explicit = self.model.explicit if self.memory_on else None
        if explicit is None:
            return 0
        return (-(-self.segment // explicit.chunk_length) + explicit.references - 1) * explicit.tokens

    def travelling(self, role: Role) -> int:
        """Return the number of tokens that enter a layer: those of the micro-batch and of references."""
        return self.tokens + (self.reference_tokens if role.references != "none" else 0)


@dataclass(frozen=True)
class Kept:
    """Bytes that a decoder layer keeps of one micro-batch; entering: of its input, which the norms keep."""

    entering: float = 0.0
    norms: float = 0.0  # norms and residual stream
    attention: float = 0.0
    feed_forward: float = 0.0
    memory: float = 0.0  # the memory's activations
    banks: float = 0.0  # the memory states at the start of each segment

    @property
    def total(self) -> float:
        """Bytes kept without checkpointing."""
        return self.norms + self.attention + self.feed_forward + self.memory + self.banks

    def after(self, checkpointing: str) -> float:
        """Return the bytes kept until the backward pass with this checkpointing; the rest is recomputed there."""
        if checkpointing == "full":
            return self.entering
        if checkpointing == "selective":  # attention and memory are recomputed from what the norms keep
            return self.norms + self.feed_forward
        return self.total


def layer_kept(shape: Shape, role: Role) -> Kept:
    """Return the bytes that one decoder layer keeps of one micro-batch."""
    model, a, t, n = shape.model, shape.item, shape.tensor, shape.tokens
    entering = shape.travelling(role) * model.hidden_size * a / (t if shape.sequence else 1)
    if shape.memory_on:
        n = round(n * (1 + model.memory.extra_tokens(model) / shape.segment))
    more = shape.reference_tokens if role.references != "none" else 0  # enter the block beside the tokens
    through = more if role.references == "whole" else 0
    norms = (2 * n + more + through) * shape.norm_kept / (t if shape.sequence else 1)
    width = model.head_width * (2 * model.num_heads + 2 * model.num_kv_heads)  # q, k, v and the result
    mask = 0 if shape.varlen else shape.window * a
    attention = n * (width * a / t + FP32 * model.num_heads / t + mask)  # log-sums
    attention += _references_kept(shape, role)
    arrays = 3 if shape.compiled else 4  # gate and up, their product; eager also silu of the gate
    feed_forward = (n + through) * arrays * model.ffn_size * a / t
    if not (role.hosts and shape.memory_on):
        return Kept(entering, norms, attention, feed_forward)
    own, (memory, banks) = model.memory.attention_kept(shape, n), model.memory.kept(shape)
    attention = attention if own is None else own
    return Kept(entering, norms, attention, feed_forward, n * memory, n * banks)


def _references_kept(shape: Shape, role: Role) -> float:
    """Return the bytes that explicit memory adds to a layer's attention: of references, their keys and values."""
    model, a, t = shape.model, shape.item, shape.tensor
    if model.explicit is None or not shape.memory_on:
        return 0.0
    sink = len(model.explicit.bos)
    before = sink + (shape.in_sight if role.reads else 0)
    pairs = 2 * model.head_width * model.num_kv_heads * a / t  # keys and values of one token
    reads = shape.batch * shape.segments * before * pairs + shape.tokens * before * a  # keys and values, wider mask
    through = shape.tokens + (shape.reference_tokens if role.references == "whole" else 0)
    reads += through * model.head_width * model.num_heads * a / t  # the concatenated results of attention
    if role.references != "whole":
        return reads
    own = shape.reference_tokens * (model.head_width * 2 * model.num_heads * a / t + pairs + FP32 * model.num_heads / t)
    return reads + own + shape.references * sink * pairs


def head_kept(shape: Shape) -> float:
    """Return the bytes that `model.loss.HeadLoss` and the final norm keep.

    These are the gradients of the norm's output, which take its place, and of the head's weight, in fp32 when several
    blocks add to it.
    """
    item = FP32 if shape.loss_rows < shape.tokens else shape.item
    return shape.tokens * shape.norm_kept + shape.model.vocab_size / shape.tensor * shape.model.hidden_size * item


def head_transient(shape: Shape) -> float:
    """Return the bytes needed in addition while a block of the loss is computed.

    These are logits and log-probabilities in fp32, in bf16 the logits again, and the block's gradient of the weight.
    Compiled, there are only logits and their gradient beside the gradient of the weight.
    """
    logits = shape.loss_rows * (2 * FP32 + (shape.item if shape.item < FP32 else 0))
    if shape.compiled:
        logits = shape.loss_rows * 2 * shape.item
    return shape.model.vocab_size / shape.tensor * (logits + shape.model.hidden_size * shape.item)


def layer_transient(shape: Shape, kept: Kept, checkpointing: str) -> float:
    """Return the bytes needed while one layer's backward runs: recomputed ones, and gradients of its widest part."""
    recomputed = kept.total if checkpointing == "full" else 0.0
    if checkpointing == "selective":
        recomputed = kept.attention + kept.memory + kept.banks
    return recomputed + max(kept.feed_forward, kept.attention, kept.memory) + 2 * kept.entering
