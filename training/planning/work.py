"""Seconds one device needs for each layer's products and passes over arrays, forward and backward together.

A pass reads or writes an array once.  The counts are of the operations in `model/` as torch runs them one by one; the
products are at their real sizes, so that a measured device (`training.planning.probe`) can be asked for them.
B batch, T tokens of a segment, D hidden, H heads, N slots, d head width, F neurons, V vocabulary.
"""

from dataclasses import dataclass

from training.planning.activations import DELTA_CHUNK, FP32, Shape
from training.planning.devices import Device

PASSES = {  # over arrays of the size named, forward and backward together
    "norm": 5,  # x and y; x, dy and dx
    "norm_in_parts": 19,  # square, mean, two products and their backwards
    "residual": 12,  # two sums and the sums of their gradients
    "rotate": 18,  # over queries and keys: four half products, two sums, a concatenation, and backwards
    "heads": 4,  # over q, k, v and the result: concatenated, transposed and split
    "swiglu": 18,  # over the neurons: silu, product, and the gradients of both, which are joined again
    "consumer": 3,  # a layer more that reads the same array: its gradient is added
    "keys": 45,  # lm2: normalised, masked, squared, summed up, faded
    "queries": 18,  # normalised and transposed
    "gates": 72,  # of D: two gates, content, norm of what is read, output gate, in fp32
    "delta": 90,  # of D: as gates, and the chunks' operands
    "chunk": 30,  # of heads x chunk: the triangular systems
    "depth": 70,  # of D: a norm, three gates, tanh, slots
    "banks": 12,  # over the states: scan, copies
    "logits": 7,  # over [tokens, V] in fp32: log-softmax and its gradient
}


@dataclass(frozen=True)
class Work:
    """Seconds, forward and backward; `inner`: attention and memory, which selective checkpointing computes again."""

    inner: float = 0.0
    outer: float = 0.0

    @property
    def total(self) -> float:
        return self.inner + self.outer

    def repeated(self, checkpointing: str) -> float:
        """With what is computed again in the backward pass: a third, as the forward is of the products."""
        again = {"none": 0.0, "selective": self.inner, "full": self.total}[checkpointing]
        return self.total + again / 3


def decoder_work(shape: Shape, hosts: bool, device: Device, precision: str) -> Work:
    """One decoder layer on one micro-batch."""
    model, t, a, tokens = shape.model, shape.tensor, shape.item, shape.tokens
    if shape.memory_on and model.memory.kind == "rmt":
        tokens = round(tokens * (1 + 3 * model.slots / shape.segment))
    size, ffn, width = model.hidden_size, model.ffn_size // t, model.head_width
    heads, kv_heads = model.num_heads // t, model.num_kv_heads // t
    stream = _Streams(device, tokens)
    attention = device.linear(tokens, size, width * (heads + 2 * kv_heads), precision)
    attention += device.linear(tokens, heads * width, size, precision)
    attention += device.attention(shape.batch * shape.segments, heads, shape.segment, shape.window, width, precision)
    attention += stream("rotate", (heads + kv_heads) * width, a) + stream("heads", (2 * heads + 2 * kv_heads) * width, a)
    attention += device.stream(tokens * shape.window * (5.0 + a), tokens * shape.window)  # the mask of documents
    residual = size / (t if shape.sequence else 1)
    outer = device.linear(tokens, size, 2 * ffn, precision) + device.linear(tokens, ffn, size, precision)
    outer += stream("swiglu", ffn, a) + stream("residual", residual, a)
    norms = stream("norm", residual, a) if device.fused_norms else stream("norm_in_parts", residual, FP32)
    outer += 2 * norms
    memory = _memory_work(shape, device, precision) if hosts else 0.0
    return Work(attention + memory, outer)


def head_work(shape: Shape, device: Device, precision: str) -> float:
    """Final norm, output head and loss."""
    model, stream = shape.model, _Streams(device, shape.tokens)
    vocabulary = model.vocab_size // shape.tensor
    norm = stream("norm", model.hidden_size, shape.item)
    casts = 4.0 if shape.item < FP32 else 0.0  # to fp32 and the gradient back
    loss = stream("logits", vocabulary, FP32) + device.stream(
        casts * shape.tokens * vocabulary * (FP32 + shape.item) / 2, shape.tokens * vocabulary * FP32
    )
    return norm + device.linear(shape.tokens, model.hidden_size, vocabulary, precision) + loss


def embedding_work(shape: Shape, device: Device) -> float:
    """The look-up, and a gradient as large as the table: zeroed, written, added."""
    table = shape.model.vocab_size // shape.tensor * shape.model.hidden_size * shape.item
    return device.stream(4.0 * table, table) + device.stream(5.0 * shape.residual, shape.residual)


class _Streams:
    """Passes over arrays of a micro-batch."""

    def __init__(self, device: Device, tokens: int) -> None:
        self.device, self.tokens = device, tokens

    def __call__(self, what: str, numbers: float, item: int) -> float:
        """Seconds of the passes named over `numbers` of `item` bytes a token."""
        array = self.tokens * numbers * item
        return self.device.stream(PASSES[what] * array, array)


def _memory_work(shape: Shape, device: Device, precision: str) -> float:
    model, t, tokens, stream = shape.model, shape.tensor, shape.tokens, _Streams(device, shape.tokens)
    size, heads, width = model.hidden_size, max(1, model.memory.heads // t), model.hidden_size // model.memory.heads
    windows = shape.batch * shape.segments

    def linear(outer: int, inner: int = size) -> float:
        consumer = stream("consumer", inner, shape.item)
        return device.linear(tokens, inner, outer, precision) + consumer

    if model.memory.kind == "rmt":  # a gate inside attention: its scores pass through memory
        keys = shape.segment + 3 * model.slots
        return stream("logits", 2.0 * keys * model.num_heads / t, FP32)
    if model.memory.is_depth:
        attention = device.attention(windows, heads, shape.segment, shape.segment, width, precision)
        return 3 * linear(size // t) + 3 * linear(size) + attention + stream("depth", size, FP32)
    own = size // t
    out = device.linear(tokens, own, size, precision)
    banks = windows * heads * width * (model.slots if model.memory.kind == "lm2" else width) * FP32
    states = device.stream(PASSES["banks"] * banks, banks)
    if model.memory.kind == "lm2":
        rows = model.slots
        products = 2 * device.batched(windows * heads, shape.segment, rows, width)  # write and read
        passes = stream("keys", heads * rows, FP32) + stream("queries", heads * rows, FP32) + stream("gates", own, FP32)
        return 2 * linear(heads * rows) + 3 * linear(own) + linear(heads) + out + products + passes + states
    chunk = min(DELTA_CHUNK, shape.segment)
    chunks = windows * heads * -(-shape.segment // chunk)
    products = device.batched(chunks, width, width, chunk) * 3 + device.batched(chunks, chunk, width, chunk) * 1.5
    products += 2 * device.batched(chunks, width, width, width)  # the chunks' transitions, one after the other
    passes = stream("delta", own, FP32) + stream("chunk", heads * chunk, FP32) + stream("queries", own, FP32)
    return 4 * linear(own) + 2 * linear(heads) + out + products + passes + states
