"""What the paths for GPUs save of a micro-batch's forward and backward at the published sizes, counted without a GPU.

    python benchmarks/traced.py

Before: layers and loss eager, attention with a mask for documents in one kernel, the loss over all logits at once, the
delta rule's chunks one after the other.  After: compiled layers, varlen attention, the loss in compiled blocks, all
chunks in one batch.  benchmarks/counting.py says how it counts; what it does not: the optimizer, what is prepared once
a micro-batch (angles, mask, cuts), kernels that a library's product or attention starts beside its own, and what
happens inside flash-linear-attention's operator, which `delta` takes where it is installed: a call is one kernel here.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.claims import claim
from benchmarks.counting import Compiled, Counts, Eager
from benchmarks.gpu_parts.common import random_step
from benchmarks.gpu_parts.training import DELTA, LLAMA, LM2, Case
from model import LanguageModel
from model.cost import LOSS_BLOCK
from model.loss import HeadLoss
from model.memory.delta.module import DeltaMemory
from model.memory.segmental import Projected
from model.network import _stream
from model.preparation import prepare
from model.segments import SegmentSpan
from training.batches import MicroBatch

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
GB = 1e9
CHUNK = 64  # tokens
# as many samples as `benchmarks/gpu.sh` takes on an H200
SIZES = [("Llama 1.2 B", LLAMA, 16), ("LM2 1.7 B", LM2, 6), ("delta 1.6 B", DELTA, 2)]


@dataclass
class Traced:
    """Of one micro-batch.  loss_peak: bytes the loss holds at once, beside the hidden states and the head's weight."""

    layers: Counts = field(default_factory=Counts)
    rest: Counts = field(default_factory=Counts)
    loss_peak: int = 0

    @property
    def total(self) -> Counts:
        return self.layers + self.rest


class Micro:
    """A model of one layer on the CPU, whose weights are not initialised, and a micro-batch for it."""

    def __init__(self, case: Case, samples: int, small: bool = False) -> None:
        config = case.config(small, samples)
        self.layers, length = config.model.num_layers, config.data.sequence_length
        self.config = config.model.model_copy(update={"num_layers": 1})
        self.net = LanguageModel(self.config, memory_on=bool(case.phase)).to(torch.bfloat16)
        self.batch: MicroBatch = random_step(1, samples, length, self.config.vocab_size).micro_batches[0]

    def spans(self, varlen: bool) -> list[SegmentSpan]:
        """As the layers get them, on a device with or without a varlen kernel."""
        cut, _, _ = _stream(self.net, self.batch.ids, self.batch.documents[:, 1:], None)
        with mock.patch("model.preparation.serves_varlen", lambda *_: varlen):
            return prepare(self.config, cut, self.batch.ids, torch.bfloat16, False, self.batch.changes)

    def fakes(self) -> FakeTensorMode:
        """The weights become fake ones of the mode that is returned."""
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        there: dict[int, nn.Parameter] = {}
        for child in self.net.modules():
            for name, parameter in child.named_parameters(recurse=False):
                fake = nn.Parameter(mode.from_tensor(parameter.detach()))
                child._parameters[name] = there.setdefault(id(parameter), fake)
        return mode

    def hidden(self) -> Tensor:
        """The residual stream [B, L, D], without numbers."""
        return torch.empty(*self.batch.ids.shape, self.config.hidden_size, dtype=torch.bfloat16, requires_grad=True)


def eager_kernels() -> ExitStack:
    """The kernels that a GPU has for what torch takes apart on a CPU."""

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        group = q.size(1) // k.size(1)
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        bias = None
        if attn_mask is not None:  # torch gives kernels numbers to add
            bias = torch.where(attn_mask, 0.0, float("-inf")).to(q.dtype).expand(*q.shape[:3], k.size(2))
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        return kernel(q, k, v, bias, True, is_causal=attn_mask is None)[0]  # type: ignore[no-any-return]

    def norm(x: Tensor, shape: Sequence[int], weight: Tensor, eps: float) -> Tensor:
        return torch.ops.aten._fused_rms_norm(x, shape, weight, eps)[0]  # type: ignore[no-any-return]

    stack = ExitStack()
    stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attention))
    stack.enter_context(mock.patch.object(F, "rms_norm", norm))
    stack.enter_context(mock.patch("model.parallel._SEPARATE_ROWS", sys.maxsize))  # as on a GPU: one product
    return stack


def loss_at_once(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy over the logits of all tokens."""
    logits = F.linear(hidden, weight).float()
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return (losses * weights).sum()


class Rows:
    """`model.loss._rows` compiled: what a block of the loss costs, without computing it."""

    def __init__(self, micro: Micro, loss: HeadLoss) -> None:
        self.eager: Eager | None = None
        self._costs: dict[int, Compiled] = {}
        vocabulary, tokens = micro.config.vocab_size, micro.batch.ids.numel()
        step = LOSS_BLOCK["cuda"] // vocabulary
        for rows in {min(step, tokens), tokens % step} - {0}:
            cost = self._costs[rows] = Compiled()
            logits = torch.empty(rows, vocabulary, dtype=torch.bfloat16)
            labels, weights = torch.zeros(rows, dtype=torch.int64), torch.ones(rows)
            with cost.as_compiler():
                torch.compile(loss._rows, dynamic=False)(logits, labels, weights, loss.tp, True)

    def __call__(self, logits: Tensor, labels: Tensor, weights: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        assert self.eager is not None
        cost = self._costs[len(logits)]
        self.eager.counts += cost.counts
        self.eager.holds(cost.inside)
        return torch.empty_like(weights), torch.empty_like(logits)


def chunk_after_chunk(
    self: DeltaMemory, projected: Projected, span: SegmentSpan, bank: Tensor
) -> tuple[Tensor, Tensor]:
    """`DeltaMemory.written` chunk by chunk, each system solved by substitution (arXiv 2412.06464, section 3.3)."""
    keys, values = self.address(projected[0]), self.by_head(projected[1])  # [B, S, H, T, d]
    beta, log_alpha = (x.transpose(2, 3).unsqueeze(-1) for x in self._strengths(projected, span.writable))
    eye = torch.eye(self.width)
    transition, added = eye, torch.zeros_like(eye)
    for k, v, b, a in zip(*(x.split(CHUNK, dim=3) for x in (keys, values, beta, log_alpha)), strict=True):
        log_gamma = a.cumsum(dim=-2)
        last = log_gamma[..., -1:, :]
        decay = (log_gamma - log_gamma.mT).clamp(max=0.0).exp()
        system = (b * decay * (k @ k.mT)).tril(-1)
        end = ((last - log_gamma).exp() * k).mT
        y = torch.linalg.solve_triangular(system, end, upper=False, left=False, unitriangular=True) * b.mT
        p, q = last.exp() * eye - (y * log_gamma.exp().mT) @ k, y @ v
        transition, added = p @ transition, p @ added + q
    return self.scanned(bank, transition, added, span)


def before(micro: Micro) -> Traced:
    cut, fakes = micro.spans(varlen=False), micro.fakes()
    with fakes, eager_kernels(), mock.patch.object(DeltaMemory, "written", chunk_after_chunk):
        with Eager() as layer:
            micro.net.decoder_layers[0](micro.hidden(), cut)[0].sum().backward()
        return around_layers(micro, loss_at_once, Traced(layer.counts * micro.layers))


def after(micro: Micro, fla: bool = False) -> Traced:
    layer, loss = Compiled(), HeadLoss(micro.net.tp, block=LOSS_BLOCK["cuda"])
    with layer.as_compiler(), mock.patch("model.memory.delta.module.takes", lambda *_: fla):
        micro.net.decoder_layers[0].compile_block()
        micro.net.decoder_layers[0](micro.hidden(), micro.spans(varlen=True))[0].sum().backward()
    rows = Rows(micro, loss)
    with micro.fakes(), eager_kernels(), mock.patch.object(loss, "_rows", rows):
        return around_layers(micro, loss, Traced(layer.counts * micro.layers), rows)


def around_layers(micro: Micro, loss: Loss, found: Traced, rows: Rows | None = None) -> Traced:
    """`found` with embedding, final norm, head and loss."""
    net, batch = micro.net, micro.batch
    with Eager() as outer:
        embedded = net.embedding(batch.ids)
        hidden = net.final_norm(embedded)
    given = hidden.detach().requires_grad_()
    weight = net.head.weight.detach().requires_grad_()
    with Eager() as inner:
        if rows is not None:
            rows.eager = inner
        gradient, _ = torch.autograd.grad(loss(given, weight, batch.labels, batch.weights), (given, weight))
    with outer:
        hidden.backward(gradient)
    return replace(found, rest=outer.counts + inner.counts, loss_peak=inner.peak)


def main() -> None:
    """The table, and a claim for each of its goals."""
    print(f"torch {torch.__version__}; of one micro-batch, forward and backward")
    claims = []
    for name, case, samples in SIZES:
        pair = []
        ways: dict[str, Callable[[Micro], Traced]] = {"before": before, "after": after}
        if case.memory == "delta":
            ways["after, with the extra fla"] = partial(after, fla=True)
        for when, trace in ways.items():
            torch._dynamo.reset()
            found = trace(Micro(case, samples))
            pair.append(found)
            total = found.total
            print(
                f"{name}, {samples} x {case.length:,}, {when}: {total.bytes / GB:.1f} GB of elementwise work, "
                f"{total.kernels:,} kernels ({total.products:,} products, {total.attention} attention, "
                f"{total.elementwise:,} elementwise), loss {found.loss_peak / GB:.2f} GB at its peak",
                flush=True,
            )
            if trace is before:
                continue
            old = pair[0].total
            claims.append((f"{name}: elementwise bytes, {when} over before", total.bytes / old.bytes, 1 / 3))
            claims.append((f"{name}: peak of the loss, {when} over before", found.loss_peak / pair[0].loss_peak, 1 / 4))
            if case.memory == "delta":
                claims.append((f"{name}: kernels, {when} over before", total.kernels / old.kernels, 1 / 20))
    for text, value, goal in claims:
        claim(text, value, f"<= {goal:.3f}", value <= goal)


if __name__ == "__main__":
    main()
