"""Seconds of each layer's products and passes over arrays on one device, forward and backward together.

Products and passes have their real sizes, so that a CPU can measure them (`training.planning.probe`).
B batch, T tokens of a segment, D hidden, H heads, N slots, d head width, F neurons, V vocabulary.
"""

from dataclasses import dataclass

from model.cost import Role
from model.memory.planning import FP32
from training.planning.activations import Shape
from training.planning.devices import Device


@dataclass(frozen=True)
class Work:
    """Seconds of forward and backward; inner: of attention and memory, which selective checkpointing recomputes."""

    inner: float = 0.0
    outer: float = 0.0

    @property
    def total(self) -> float:
        """Seconds without recomputation."""
        return self.inner + self.outer

    def repeated(self, checkpointing: str) -> float:
        """Return the seconds with recomputation added; a forward is a third of forward and backward."""
        again = {"none": 0.0, "selective": self.inner, "full": self.total}[checkpointing]
        return self.total + again / 3


def decoder_work(shape: Shape, role: Role, device: Device, precision: str) -> Work:
    """Return the work of one decoder layer on one micro-batch."""
    model, t, a, tokens = shape.model, shape.tensor, shape.item, shape.tokens
    if shape.memory_on:
        tokens = round(tokens * (1 + model.memory.extra_tokens(model) / shape.segment))
    size, ffn, width = model.hidden_size, model.ffn_size // t, model.head_width
    heads, kv_heads = model.num_heads // t, model.num_kv_heads // t
    segment, windows = shape.segment, shape.batch * shape.segments
    window = shape.window + (shape.in_sight if role.reads else 0)
    all_tokens = shape.travelling(role) if shape.reference_tokens else tokens
    attention = device.linear(all_tokens, size, width * (heads + 2 * kv_heads), precision)
    attention += device.attention(windows, heads, segment, window, width, precision)
    attention += device.passes("heads", all_tokens, (heads + 2 * kv_heads) * width, a, width)
    attention += 0.0 if shape.varlen else device.passes("mask", tokens, window, 1, segment)
    attention += _references_work(shape, role, device, precision)
    if role.references == "whole":
        tokens = all_tokens
    attention += device.linear(tokens, heads * width, size, precision)
    outer = device.linear(tokens, size, 2 * ffn, precision) + device.linear(tokens, ffn, size, precision)
    rows = tokens // t if shape.sequence else tokens
    outer += device.passes("swiglu", tokens, 2 * ffn, a)
    outer += 2 * (device.passes("residual", rows, size, a) + device.passes("norm", rows, size, a))
    memory = model.memory.seconds(shape, device, precision) if role.hosts else 0.0
    return Work(attention + memory, outer)


def _references_work(shape: Shape, role: Role, device: Device, precision: str) -> float:
    """Return the seconds of attention inside references, and of the scores by which their tokens are chosen."""
    model = shape.model
    if model.explicit is None or role.references == "none":
        return 0.0
    heads, length, width = model.num_heads // shape.tensor, model.explicit.reference_length, model.head_width
    seconds = 0.0
    if role.references == "whole":
        seconds += device.attention(shape.references, heads, length, length, width, precision)
    if role.reads:  # forward only
        seconds += device.batched(shape.references * heads, length, length, width) / 3
        seconds += device.passes("loss", shape.references * length, heads * length, FP32) / 3
    return seconds


def head_work(shape: Shape, device: Device, precision: str) -> float:
    """Return the seconds of final norm, output head and loss."""
    model, tokens, a = shape.model, shape.tokens, shape.item
    vocabulary = model.vocab_size // shape.tensor
    casts = 2.0 * (FP32 + a) if a < FP32 and not shape.compiled else 0.0  # to fp32, and the gradient back
    loss = device.passes("loss", tokens, vocabulary, a if shape.compiled else FP32)
    loss += device.stream(casts * tokens * vocabulary, tokens * vocabulary)
    table, blocks = vocabulary * model.hidden_size, -(-tokens // shape.loss_rows)
    if blocks > 1:  # each block's gradient of the weight is added to an fp32 sum
        loss += device.stream(blocks * (a + 2 * FP32) * table, table * FP32)
    return (
        device.passes("norm", tokens, model.hidden_size, a)
        + loss
        + device.linear(tokens, model.hidden_size, vocabulary, precision)
    )


def embedding_work(shape: Shape, device: Device) -> float:
    """Return the seconds of the look-up, and of a gradient as large as the table: zeroed, written, added."""
    table = shape.model.vocab_size // shape.tensor * shape.model.hidden_size * shape.item
    return device.stream(4.0 * table, table) + device.stream(5.0 * shape.residual, shape.residual)
