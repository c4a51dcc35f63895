"""The common part of the memories that flow through time: read before write, all segments of a span at once.

A segment's tokens read the bank that earlier segments left. Then the segment as a whole changes the bank:

    M_{s+1} = transition_s(M_s) + added_s

Transition and addition depend on the segment's tokens alone, so they are computed for all segments in one batch. Only
this equation is computed segment after segment, and it costs little.

B batch, S segments, T tokens of a segment, H memory heads (of this rank), N slots of a bank, d width of a head,
D = H*d of all ranks.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.backbone import BackboneConfig
from model.linear import linear
from model.memory.interface import RecurrentMemory, lost_slots
from model.memory.operations import address, normalise, scan
from model.memory.reading import MemoryReading, Tape, by_token, gate_means
from model.memory.spec import MemoryConfig
from model.parallel import ColumnParallel, RowParallel, sharded_parameter
from model.parallel_context import ParallelContext
from model.segments import SegmentSpan

SHARPNESS = 1.5  # initial standard deviation of an address's coordinates before elu + 1
WRITES = ("key", "content", "strength", "log_decay")  # names under which subclasses show each token's write
READ_EPS = 0.1  # of the read's RMS norm, so that it does not amplify an almost empty bank or its gradient


@dataclass(frozen=True)
class SegmentState:
    """bank: fp32 [B, H, N, d]; pending: [B, o, D], the open segment's o < T tokens, written when it closes."""

    bank: Tensor
    pending: Tensor


Projected = tuple[Tensor, ...]  # products of the same tokens with several weights


def products(x: Tensor, layers: tuple[ColumnParallel, ...]) -> Projected:
    """Return x [..., D] times each layer's weight, computed as one product.

    Under ZeRO 3, where DeepSpeed marks each parameter, they are separate products: a weight is present only while its
    own layer is called.
    """
    if any(hasattr(layer.weight, "ds_id") for layer in layers):
        return tuple(layer(x) for layer in layers)
    return _Products.apply(x, *(layer.weight for layer in layers))


class _Products(torch.autograd.Function):
    """y = x W^T with the weights concatenated; the backward pass concatenates them again, to keep no copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        return linear(x, torch.cat(weights)).split([weight.size(0) for weight in weights], dim=-1)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        dx = linear(torch.cat(dys, dim=-1), torch.cat(weights).t()) if ctx.needs_input_grad[0] else None
        rows = x.flatten(0, -2).t()
        needed = zip(dys, ctx.needs_input_grad[1:], strict=True)
        return dx, *(linear(dy.flatten(0, -2).t(), rows) if need else None for dy, need in needed)


class SegmentalMemory(RecurrentMemory):
    """Reads its bank with positive unit queries and an output gate; subclasses define how it is written.

    All parameters are split by heads, and the forward has no collective of its own. The bank starts at zero, so a
    document's first segment reads exactly zero. W_o starts at zero, so switching the memory on changes no logit.
    """

    gate_in: ColumnParallel
    gate_forget: ColumnParallel

    def __init__(self, config: MemoryConfig, model: BackboneConfig, parallel: ParallelContext, num_slots: int) -> None:
        super().__init__()
        size, heads, tp = model.hidden_size, config.heads, parallel.tensor
        self.segments = parallel.segments
        self.num_slots, self.width, self.heads = num_slots, size // heads, heads // tp.size
        self.init_std = model.initial_std(size)
        # the initial W h has a standard deviation of init_std * sqrt(D), 1 unless the configuration sets init_std
        self.sharpness = SHARPNESS / (self.init_std * size**0.5)
        self.query = ColumnParallel(size, heads * num_slots, tp)
        self.key = ColumnParallel(size, heads * num_slots, tp)
        self.content = ColumnParallel(size, size, tp)
        self.gate_out = ColumnParallel(size, size, tp)
        self.gate_out_bias = sharded_parameter((size,), tp)
        self.out = RowParallel(size, size, tp)

    @abstractmethod
    def written(self, projected: Projected, span: SegmentSpan, bank: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the banks before and after whole segments.

        Args: projected: key, content, gate_in and gate_forget of the segments' tokens, each [B, S, T, ...];
            bank: fp32 [B, H, N, d] that enters the first segment.
        Returns: the banks that enter the segments, fp32 [B, S, H, N, d], and the one that leaves the last.
        """

    def scanned(self, bank: Tensor, transition: Tensor, added: Tensor, span: SegmentSpan) -> tuple[Tensor, Tensor]:
        """Return what `written` returns, from each segment's fp32 transition and addition (see `scan`)."""
        if span.continues is not None:  # a new document begins with the initial bank, which is zero
            transition = transition * span.continues[:, :, None, None, None]
        return scan(bank, transition, added, self.segments)

    def initial_value(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if name == "out.weight" or name.endswith("_bias"):
            return torch.zeros(shape)
        return torch.randn(shape, generator=generator).mul_(self.init_std)

    def drawn_as(self, name: str) -> str:
        # Queries and keys have equal initial weights, so that a token reads what an equal token wrote from the start.
        return name.replace(".memory.query.", ".memory.key.")

    def initial_state(self, hidden: Tensor) -> SegmentState:
        shape = (hidden.size(0), self.heads, self.num_slots, self.width)
        return SegmentState(torch.zeros(shape, dtype=torch.float32, device=hidden.device), hidden[:, :0].detach())

    def forward(self, h: Tensor, span: SegmentSpan, state: SegmentState) -> tuple[Tensor, SegmentState]:
        reads = (self.query, self.gate_out)
        writes = (self.key, self.content, self.gate_in, self.gate_forget)
        if not span.closes:  # the open segment is not written yet: remember its tokens
            read, banks = products(h, reads), state.bank.unsqueeze(1)
            state = SegmentState(state.bank, torch.cat((state.pending, h), dim=1))
        else:
            if state.pending.size(1):
                read, write = products(h, reads), products(torch.cat((state.pending, h), dim=1), writes)
            else:
                both = products(h, reads + writes)
                read, write = both[:2], both[2:]
            write = tuple(x.unflatten(1, (span.segments, -1)) for x in write)
            banks, last = self.written(write, span, state.bank)
            state = SegmentState(last, h.new_empty(h.size(0), 0, h.size(2)))  # a view would keep h alive
        query, gate = (x.unflatten(1, (span.segments, -1)) for x in read)
        return self._output(query, gate, banks, span).flatten(1, 2), state

    def reading(self, tape: Tape) -> MemoryReading:
        address, recalled = (by_token(tape[name]) for name in ("query", "recalled"))
        bank = torch.cat([x[0].float().cpu() for x in tape["bank"]])
        own = torch.arange(address.size(0)) // tape["query"][0].size(3)  # the bank each token read
        rebuilt = torch.einsum("lhn,lhnd->lhd", address, bank[own])
        writes = {name: by_token(tape[name]) for name in WRITES if name in tape}
        return MemoryReading(address, bank, recalled, gate_means(tape), float((rebuilt - recalled).abs().max()), writes)

    def by_head(self, x: Tensor) -> Tensor:
        """[B, S, n, H*d] -> fp32 [B, S, H, n, d], contiguous, as passes over strided heads are several times slower."""
        return x.float().unflatten(-1, (self.heads, -1)).transpose(2, 3).contiguous()

    def address(self, x: Tensor) -> Tensor:
        """Map queries or keys [B, S, n, H*N] to positive unit vectors over the bank's slots, fp32 [B, S, H, n, N]."""
        return address(self.by_head(x), self.sharpness)

    def _output(self, query: Tensor, gate_out: Tensor, banks: Tensor, span: SegmentSpan) -> Tensor:
        """Return this rank's partial W_o (sigmoid(W_out h) * rms(q^T M)), zero where another document wrote M."""
        lost = lost_slots((self,), self.num_slots, banks.device)
        if lost is not None:
            banks = banks * ~lost[:, None]
        queries = self.address(query)
        recalled = queries @ banks  # [B, S, H, n, d]
        for name, x in (("query", queries), ("bank", banks), ("recalled", recalled)):
            self.show(name, x)
        recalled = normalise(recalled, self.width * READ_EPS, self.width**0.5)  # RMS norm
        if span.readable is not None:
            recalled = recalled * span.readable[:, :, None, :, None]
        gate = torch.sigmoid(gate_out.float() + self.gate_out_bias)
        self.record_gate("out", gate)
        return self.out((gate * recalled.transpose(2, 3).flatten(3)).to(gate_out.dtype))
