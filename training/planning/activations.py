"""Bytes that the forward pass keeps for the backward, and those that live only while a layer is computed.

Counted from the operations of `model/` as autograd keeps them; tests hold the sums to torch's own saved tensors.
B batch, T tokens of a segment, W keys its tokens look at, D hidden, H heads, N slots, d head width, V vocabulary.
"""

from dataclasses import dataclass

from model.config import ModelConfig
from model.cost import LOSS_BLOCK, Role, chunk_length

FP32 = 4  # bytes


@dataclass(frozen=True)
class Shape:
    """What one rank computes of a micro-batch."""

    model: ModelConfig
    memory_on: bool
    batch: int  # samples
    length: int  # tokens of a sample on this rank
    tensor: int  # ranks that share a layer
    sequence: bool  # norms and residual stream are split over them too
    item: int  # bytes of an activation: 4 in fp32, 2 in bf16
    fused_norms: bool

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def loss_rows(self) -> int:
        """Tokens whose logits are computed at once."""
        block = LOSS_BLOCK["cuda" if self.fused_norms else "cpu"]
        return min(self.tokens, max(1, block * self.tensor // self.model.vocab_size))

    @property
    def segment(self) -> int:
        """T, of a sample that may be shorter than a segment."""
        return min(self.length, self.model.segment_length)

    @property
    def segments(self) -> int:
        return -(-self.length // self.segment)

    @property
    def window(self) -> int:
        """W."""
        return min(self.segment * self.model.attention_span, self.length)

    @property
    def residual(self) -> int:
        """Bytes of the residual stream of the micro-batch."""
        return self.tokens * self.model.hidden_size * self.item

    @property
    def references(self) -> int:
        """References that the micro-batch's chunks bring, each a sequence of its own."""
        explicit = self.model.explicit if self.memory_on else None
        return self.tokens // explicit.chunk_length if explicit else 0

    @property
    def reference_tokens(self) -> int:
        """Tokens of these references."""
        return self.references * self.model.explicit.reference_length if self.model.explicit else 0

    @property
    def in_sight(self) -> int:
        """m: kept tokens of references before each segment: those that any of its chunks sees."""
        explicit = self.model.explicit if self.memory_on else None
        if explicit is None:
            return 0
        return (-(-self.segment // explicit.chunk_length) + explicit.references - 1) * explicit.tokens

    def travelling(self, role: Role) -> int:
        """Tokens that come into a layer: the micro-batch's, and those of references."""
        return self.tokens + (self.reference_tokens if role.references != "none" else 0)


@dataclass(frozen=True)
class Kept:
    """Bytes a decoder layer keeps of one micro-batch; `entering`: its input, which the norms keep."""

    entering: float = 0.0
    norms: float = 0.0  # and the residual stream
    attention: float = 0.0
    feed_forward: float = 0.0
    memory: float = 0.0  # its activations
    banks: float = 0.0  # its states that enter each segment

    @property
    def total(self) -> float:
        return self.norms + self.attention + self.feed_forward + self.memory + self.banks

    def after(self, checkpointing: str) -> float:
        """What stays until the backward pass; the rest is computed again there."""
        if checkpointing == "full":
            return self.entering
        if checkpointing == "selective":  # attention and memory begin with what the norms keep
            return self.norms + self.feed_forward
        return self.total


def layer_kept(shape: Shape, role: Role) -> Kept:
    """Everything one decoder layer keeps."""
    model, a, t, n = shape.model, shape.item, shape.tensor, shape.tokens
    entering = shape.travelling(role) * model.hidden_size * a / (t if shape.sequence else 1)
    if model.memory.kind == "rmt" and shape.memory_on:  # its vectors pass like tokens
        n = round(n * (1 + 3 * model.slots / shape.segment))
    more = shape.reference_tokens if role.references != "none" else 0  # into the block
    through = more if role.references == "whole" else 0
    norms = (2 * n + more + through) * norm_kept(shape) / (t if shape.sequence else 1)
    width = model.head_width * (2 * model.num_heads + 2 * model.num_kv_heads)  # q, k, v and the result
    attention = n * (width * a / t + FP32 * model.num_heads / t + shape.window * a)  # log-sums, mask
    attention += _references_kept(shape, role)
    feed_forward = (n + through) * 4 * model.ffn_size * a / t  # gate and up, silu of the gate, their product
    if not (role.hosts and shape.memory_on):
        return Kept(entering, norms, attention, feed_forward)
    if model.memory.kind == "rmt":
        return Kept(entering, norms, _rmt_attention(shape, n), feed_forward)
    memory, banks = _memory_kept(shape)
    return Kept(entering, norms, attention, feed_forward, n * memory, n * banks)


def _references_kept(shape: Shape, role: Role) -> float:
    """Bytes that explicit memory adds to a layer's attention: the references' own, and their keys before segments."""
    model, a, t = shape.model, shape.item, shape.tensor
    if model.explicit is None or not shape.memory_on:
        return 0.0
    sink = len(model.explicit.bos)
    before = sink + (shape.in_sight if role.reads else 0)
    pairs = 2 * model.head_width * model.num_kv_heads * a / t  # keys and values of one token
    reads = shape.batch * shape.segments * before * pairs + shape.tokens * before * a  # and the wider mask
    through = shape.tokens + (shape.reference_tokens if role.references == "whole" else 0)
    reads += through * model.head_width * model.num_heads * a / t  # all contexts side by side
    if role.references != "whole":
        return reads
    own = shape.reference_tokens * (model.head_width * 2 * model.num_heads * a / t + pairs + FP32 * model.num_heads / t)
    return reads + own + shape.references * sink * pairs


def norm_kept(shape: Shape) -> float:
    """Bytes of a token in an RMSNorm: its input and its output; without a kernel of its own, fp32 intermediates."""
    size = shape.model.hidden_size
    return size * (2 * shape.item if shape.fused_norms else shape.item + 2 * FP32) + FP32


def head_kept(shape: Shape) -> float:
    """Bytes that `model.loss.HeadLoss` and the final norm keep: the gradients of the norm's output, in its place, and
    of the head's weight, which several blocks sum in fp32."""
    item = FP32 if shape.loss_rows < shape.tokens else shape.item
    return shape.tokens * norm_kept(shape) + shape.model.vocab_size / shape.tensor * shape.model.hidden_size * item


def head_transient(shape: Shape) -> float:
    """Bytes that live beside them while a block of the loss is computed: logits and log-probabilities in fp32, in bf16
    the logits once more, and the block's gradient of the weight."""
    logits = shape.loss_rows * (2 * FP32 + (shape.item if shape.item < FP32 else 0))
    return shape.model.vocab_size / shape.tensor * (logits + shape.model.hidden_size * shape.item)


def layer_transient(shape: Shape, kept: Kept, checkpointing: str) -> float:
    """Bytes that live while one layer's backward runs: what is recomputed, and the gradients of its widest part."""
    recomputed = kept.total if checkpointing == "full" else 0.0
    if checkpointing == "selective":
        recomputed = kept.attention + kept.memory + kept.banks
    return recomputed + max(kept.feed_forward, kept.attention, kept.memory) + 2 * kept.entering


def _rmt_attention(shape: Shape, tokens: float) -> float:
    """Plain attention with its scores: twice in fp32, once in the tokens' type, the gates for one sample."""
    model, a, t = shape.model, shape.item, shape.tensor
    keys = shape.segment + 3 * model.slots
    scores = keys * model.num_heads / t * (2 * FP32 + a + FP32 / shape.batch)
    return tokens * (scores + 4 * model.num_heads * model.head_width * a / t + keys)


def _memory_kept(shape: Shape) -> tuple[float, float]:
    """Bytes of a token in one block's memory: activations, and states of the segments."""
    model, a, t = shape.model, shape.item, shape.tensor
    size, heads = model.hidden_size, model.memory.heads
    if model.memory.is_depth:  # norm, gates, tanh and slots in fp32; queries to the result in the tokens' type
        return norm_kept(shape) + size * (5 * FP32 + a + 5 * a / t) + shape.window * a + FP32 * heads / t, 0.0
    per_bank = (2 * shape.segments + 1) / shape.segments / shape.segment  # each bank, the last, and a copy of each
    if model.memory.kind == "lm2":
        slots = 7 * heads * model.slots  # keys: features, unit, own document's, fading, faded; queries and a copy
        numbers = 6 * size + slots + 5 * heads + 2 * heads * model.slots / shape.segment
        return (FP32 * numbers + a * size) / t, FP32 * model.slots * size * per_bank / t
    width = size // heads
    chunk = chunk_length(shape.segment, width)
    # keys: features, unit, solved, scaled twice; written; queries: features, unit; what is read, its gate and a copy
    numbers = 11 * size + 3 * heads * chunk + 12 * heads
    banks = size * width * ((2 * shape.segments + 1) / shape.segments / shape.segment + 1 / chunk)
    return (FP32 * numbers + a * size) / t, FP32 * banks / t
