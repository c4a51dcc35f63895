"""LM2's gated slot memory, flowing through time: a bank per block, read before write.

The published equations (LM2, arXiv 2502.06049, section 2) leave open how a token finds the slot it writes to.  Here a
slot has a fixed learned address a_n beside its contents M_n (what the published identity initialisation amounts to:
slot n answers to direction n), and with h the tokens of segment s, per head:

    read     A = softmax_n(tau <q_t, a_n>),  E_mem = A M_s,  g_out = sigmoid(W_out h),
             out = W_o (g_out * rms(E_mem))                                       cf. eqs. (1)-(3)
    write    phi_t = softmax_n(tau <k_t, a_n>),  g_in = sigmoid(W_in h),  c = tanh(W_c h)       eq. (4)
             w_t = exp(-sum_{u>t} phi_u delta_u),  g_forget = exp(-sum_t phi_t delta_t)         eq. (5)
             M_{s+1} = g_forget * M_s + sum_t w_t phi_t (g_in * c)_t                            eq. (6)

q and k are unit vectors.  Everything but the last line comes from tokens alone, so all S segments are computed at once
and eq. (6) is a scan over S of an elementwise update.  W_o starts at zero: turning the memory on changes no logit.  The
contents start at zero, so a document without a past reads exactly nothing.

B batch, S segments, T tokens of a segment, H memory heads (of this rank), N slots, d slot width, D = H*d of all ranks.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.memory.interface import RecurrentMemory
from model.parallel import ColumnParallel, RowParallel, TensorParallel, sharded_parameter
from model.segments import Piece

READ_EPS = 0.1  # of the read's RMS norm: an almost empty bank must not be amplified (nor its gradient)


@dataclass(frozen=True)
class SlotState:
    """bank: fp32 [B, H, N, d]; pending: [B, o, D] the open segment's tokens, written when it closes (o < T)."""

    bank: Tensor
    pending: Tensor


class LM2TimeMemory(RecurrentMemory):
    """See the module's text.  All parameters are split by heads; the forward needs no collective of its own."""

    def __init__(self, config: ModelConfig, tp: TensorParallel) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.memory.heads
        self.width, self.heads, self.slots = size // heads, heads // tp.size, config.memory.slots
        self.query = ColumnParallel(size, size, tp)
        self.key = ColumnParallel(size, size, tp)
        self.content = ColumnParallel(size, size, tp)
        self.gate_in = ColumnParallel(size, size, tp)
        self.gate_out = ColumnParallel(size, size, tp)
        self.gate_forget = ColumnParallel(size, heads, tp)
        self.out = RowParallel(size, size, tp)
        self.gate_in_bias = sharded_parameter((size,), tp)
        self.gate_out_bias = sharded_parameter((size,), tp)
        self.gate_forget_bias = sharded_parameter((heads,), tp)
        self.log_sharpness = sharded_parameter((heads,), tp)  # ln(tau)
        self.address = sharded_parameter((heads, config.memory.slots, self.width), tp)
        self.init_std = config.init_std

    def initial_value(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        match name:
            case "out.weight":  # closed output: nothing jumps when the memory is switched on
                return torch.zeros(shape)
            case "gate_in_bias" | "gate_out_bias":
                return torch.zeros(shape)
            case "gate_forget_bias":  # softplus(-2) = 0.13: a slot keeps most of what it holds
                return torch.full(shape, -2.0)
            case "log_sharpness":  # tau = 8: a softmax that prefers a few slots of many
                return torch.full(shape, 8.0).log()
            case "address":
                return F.normalize(torch.randn(shape, generator=generator), dim=-1)
        return torch.randn(shape, generator=generator) * self.init_std

    def initial_state(self, hidden: Tensor) -> SlotState:
        bank = torch.zeros(
            hidden.size(0), self.heads, self.slots, self.width, dtype=torch.float32, device=hidden.device
        )
        return SlotState(bank, hidden[:, :0].detach())

    def forward(self, h: Tensor, piece: Piece, state: SlotState) -> tuple[Tensor, SlotState]:
        if not piece.closes:  # the open segment is not written yet: remember its tokens
            banks = state.bank.unsqueeze(1)
            state = SlotState(state.bank, torch.cat((state.pending, h), dim=1))
        else:
            tokens = torch.cat((state.pending, h), dim=1).unflatten(1, (piece.segments, -1))  # [B, S, T, D]
            banks, last = self._scan(state.bank, *self._writes(tokens, piece), piece)
            state = SlotState(last, h[:, :0])
        recalled = self._read(h.unflatten(1, (piece.segments, -1)), banks, piece)
        return self.out(recalled.to(h.dtype)).flatten(1, 2), state

    def _by_head(self, x: Tensor) -> Tensor:
        """[B, S, T, H*d] -> fp32 [B, S, H, T, d]."""
        return x.float().unflatten(-1, (self.heads, -1)).transpose(2, 3)

    def _addressing(self, x: Tensor) -> Tensor:
        """Queries or keys [B, S, T, H*d] -> weights over the slots, fp32 [B, S, H, T, N]."""
        direction = F.normalize(self._by_head(x), dim=-1) * self.log_sharpness.float().exp()[:, None, None]
        return (direction @ self.address.float().transpose(1, 2)).softmax(dim=-1)

    def _writes(self, tokens: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
        """tokens [B, S, T, D] -> what each segment keeps, fp32 [B, S, H, N, 1], and adds, fp32 [B, S, H, N, d]."""
        phi = self._addressing(self.key(tokens))  # [B, S, H, T, N]
        if piece.writable is not None:
            phi = phi * piece.writable[:, :, None, :, None]
        strength = F.softplus(
            self._by_head(self.gate_forget(tokens)) + self.gate_forget_bias.float()[:, None, None]
        )  # delta [B, S, H, T, 1]
        erased = (phi * strength).cumsum(dim=3)  # [B, S, H, T, N]: erased from the segment's begin up to each token
        total = erased[:, :, :, -1:]
        gate = torch.sigmoid(self._by_head(self.gate_in(tokens) + self.gate_in_bias))
        content = torch.tanh(self._by_head(self.content(tokens)))
        added = ((erased - total).exp() * phi).transpose(3, 4) @ (gate * content)
        keep = (-total).exp().transpose(3, 4)
        self.record_gate("in", gate)
        self.record_gate("forget", keep)
        return keep, added

    def _scan(self, bank: Tensor, keep: Tensor, added: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
        """Eq. (6) over the segments.  Returns the banks that enter them, [B, S, H, N, d], and the one that leaves."""
        if piece.continues is not None:  # a new document begins with the initial bank, which is zero
            keep = keep * piece.continues[:, :, None, None, None]
        entering = []
        for segment in range(piece.segments):
            entering.append(bank)
            bank = keep[:, segment] * bank + added[:, segment]
        return torch.stack(entering, dim=1), bank

    def _read(self, tokens: Tensor, banks: Tensor, piece: Piece) -> Tensor:
        """tokens [B, S, n/S, D], banks [B, S, H, N, d] -> gated recall, fp32 [B, S, n/S, H*d]."""
        recalled = self._addressing(self.query(tokens)) @ banks  # [B, S, H, n/S, d]
        recalled = F.rms_norm(recalled, (self.width,), eps=READ_EPS)
        if piece.readable is not None:
            recalled = recalled * piece.readable[:, :, None, :, None]
        if self.wiped:
            recalled = recalled * 0.0
        gate = torch.sigmoid(self.gate_out(tokens).float() + self.gate_out_bias)
        self.record_gate("out", gate)
        return gate * recalled.transpose(2, 3).flatten(3)
