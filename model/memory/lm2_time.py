"""LM2's gated slot memory, flowing through time: a bank per block, read before write.

The published equations (LM2, arXiv 2502.06049, section 2) leave open how a token finds the slot it writes to.  Here a
slot has a fixed learned address a_n beside its contents M_n (what the published identity initialisation amounts to:
slot n answers to direction n), and with h the tokens of segment s, per head:

    read     A = softmax_n(tau <q_t, a_n>),  E_mem = A M_s,  g_out = sigmoid(W_out h),
             out = W_o (g_out * rms(E_mem))                                       cf. eqs. (1)-(3)
    write    phi_t = softmax_n(tau <k_t, a_n>),  g_in = sigmoid(W_in h),  c = tanh(W_c h)       eq. (4)
             w_t = exp(-sum_{u>t} phi_u delta_u),  g_forget = exp(-sum_t phi_t delta_t)         eq. (5)
             M_{s+1} = g_forget * M_s + sum_t w_t phi_t (g_in * c)_t                            eq. (6)

q and k are unit vectors.  Everything but the last line comes from tokens alone.

B batch, S segments, T tokens of a segment, H memory heads (of this rank), N slots, d slot width, D = H*d of all ranks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.memory.segmental import SegmentalMemory
from model.parallel import ColumnParallel, TensorParallel, sharded_parameter


class LM2TimeMemory(SegmentalMemory):
    """See the module's text."""

    def __init__(self, config: ModelConfig, tp: TensorParallel) -> None:
        super().__init__(config, tp)
        size, heads = config.hidden_size, config.memory.heads
        self.slots = config.slots
        self.gate_in = ColumnParallel(size, size, tp)
        self.gate_in_bias = sharded_parameter((size,), tp)
        self.gate_forget = ColumnParallel(size, heads, tp)
        self.gate_forget_bias = sharded_parameter((heads,), tp)
        self.log_sharpness = sharded_parameter((heads,), tp)  # ln(tau)
        self.address = sharded_parameter((heads, self.slots, self.width), tp)

    @property
    def bank_rows(self) -> int:
        return self.slots

    def initial_value(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        match name:
            case "gate_forget_bias":  # softplus(-2) = 0.13: a slot keeps most of what it holds
                return torch.full(shape, -2.0)
            case "log_sharpness":  # tau = 8: a softmax that prefers a few slots of many
                return torch.full(shape, 8.0).log()
            case "address":
                return F.normalize(torch.randn(shape, generator=generator), dim=-1)
        return super().initial_value(name, shape, generator)

    def _addressing(self, x: Tensor) -> Tensor:
        """Queries or keys [B, S, n, H*d] -> weights over the slots, fp32 [B, S, H, n, N]."""
        # a unit vector is an RMS-normalised one over sqrt(d); the factors go to the small tensor, the addresses
        direction = F.rms_norm(self.by_head(x), (self.width,))
        sharpness = self.log_sharpness.float().exp() * self.width**-0.5
        addresses = self.address.float() * sharpness[:, None, None]
        return (direction @ addresses.transpose(1, 2)).softmax(dim=-1)

    def writes(self, tokens: Tensor, writable: Tensor | None) -> tuple[Tensor, Tensor]:
        """What each segment keeps of a slot, fp32 [B, S, H, N, 1], and adds to it, fp32 [B, S, H, N, d]."""
        phi = self._addressing(self.key(tokens))  # [B, S, H, T, N]
        if writable is not None:
            phi = phi * writable[:, :, None, :, None]
        bias = self.gate_forget_bias.float()[:, None, None]
        strength = F.softplus(self.by_head(self.gate_forget(tokens)) + bias)  # delta [B, S, H, T, 1]
        erased = (phi * strength).cumsum(dim=3)  # [B, S, H, T, N]: erased from the segment's begin up to each token
        total = erased[:, :, :, -1:]
        gate = torch.sigmoid(self.by_head(self.gate_in(tokens) + self.gate_in_bias))
        content = torch.tanh(self.by_head(self.content(tokens)))
        added = ((erased - total).exp() * phi).transpose(3, 4) @ (gate * content)
        keep = (-total).exp().transpose(3, 4)
        self.record_gate("in", gate)
        self.record_gate("forget", keep)
        return keep, added

    def transform(self, transition: Tensor, bank: Tensor) -> Tensor:
        return transition * bank

    def read(self, tokens: Tensor, banks: Tensor) -> Tensor:
        return self._addressing(self.query(tokens)) @ banks
