"""LM2's gated slot memory, flowing through time: a bank per block, read before write.

The published equations (LM2, arXiv 2502.06049, section 2) do not say how a token finds the slot it writes to. Their
bank starts as the identity, so that slot n answers to direction n. Here the address of slot n is coordinate n: a token
weights all slots by the coordinates of a positive unit vector, without a softmax over slots. k_t to write and q_t to
read are phi(W h) / |phi(W h)| with phi = elu + 1. With h the tokens of segment s, per head:

    read     E_mem = sum_n q_tn M_n,  g_out = sigmoid(W_out h),  out = W_o (g_out * rms(E_mem))          cf. (1)-(3)
    write    g_in = sigmoid(W_in h),  c = tanh(W_c h)                                                    cf. (4)
             g_forget,n = exp(-sum_t delta_t k_tn^2),  delta_t = softplus(W_forget h)                    cf. (5)
             M_n <- g_forget,n M_n + sum_t exp(-sum_{u>t} delta_u k_un^2) k_tn (g_in * c)_t              cf. (6)

A slot forgets in proportion to how much is written to it. Only the first term of the last line depends on the bank;
everything else depends on the segment's tokens alone. docs/memory.md lists the variants that were tried.

B batch, S segments, T tokens of a segment, H memory heads (of this rank), N slots, d slot width, D = H*d of all ranks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.backbone import BackboneConfig
from model.memory.lm2_time.spec import LM2TimeConfig
from model.memory.operations import decayed_keys
from model.memory.segmental import Projected, SegmentalMemory
from model.parallel import ColumnParallel, sharded_parameter
from model.parallel_context import ParallelContext
from model.segments import SegmentSpan


class LM2TimeMemory(SegmentalMemory):
    """The layer that the module's docstring describes."""

    def __init__(self, config: LM2TimeConfig, model: BackboneConfig, parallel: ParallelContext) -> None:
        super().__init__(config, model, parallel, num_slots=config.num_slots(model))
        size, heads, tp = model.hidden_size, config.heads, parallel.tensor
        self.gate_in = ColumnParallel(size, size, tp)
        self.gate_in_bias = sharded_parameter((size,), tp)
        self.gate_forget = ColumnParallel(size, heads, tp)
        self.gate_forget_bias = sharded_parameter((heads,), tp)

    def initial_value(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if name == "gate_forget_bias":  # softplus(-2) = 0.13: a slot keeps most of what it holds
            return torch.full(shape, -2.0)
        return super().initial_value(name, shape, generator)

    def written(self, projected: Projected, span: SegmentSpan, bank: Tensor) -> tuple[Tensor, Tensor]:
        key, value, gate_in, gate_forget = projected
        keys = self.address(key)  # [B, S, H, T, N]
        if span.writable is not None:
            keys = keys * span.writable[:, :, None, :, None]
        bias = self.gate_forget_bias.float()[:, None, None]
        strength = F.softplus(self.by_head(gate_forget) + bias)  # delta [B, S, H, T, 1]
        decayed, kept = decayed_keys(keys, strength)
        gate = torch.sigmoid(self.by_head(gate_in.float() + self.gate_in_bias))
        content = gate * torch.tanh(self.by_head(value))
        self.record_gate("in", gate)
        self.record_gate("forget", kept)
        for name, x in (("key", keys), ("strength", strength), ("content", content)):
            self.show(name, x)
        # transition: the share that each segment keeps of a slot, [B, S, H, N, 1]; addition: [B, S, H, N, d]
        return self.scanned(bank, kept.transpose(3, 4), decayed.transpose(3, 4) @ content, span)
