"""Associative matrix memory: the delta rule with learned decay (gated DeltaNet, arXiv 2412.06464) and LM2's gates.

Per head, with positive unit keys k_t and queries q_t (elu + 1, normalised), for every token t of a segment in turn:

    M <- alpha_t (I - beta_t k_t k_t^T) M + beta_t k_t v_t^T        M in R^{d x d}, rows are key directions

beta_t = sigmoid(W_in h) is the input gate: how much of what k_t recalls is replaced by v_t = W_c h;
alpha_t = exp(-softplus(W_forget h)) the forget gate.  Tokens of a segment read only what earlier segments wrote,

    out = W_o (sigmoid(W_out h) * rms(q_t^T M_s))

so only the matrix at each segment's end is needed, and the product of a chunk of C tokens is exact in closed form
(arXiv 2406.06484; decays as ratios <= 1, so nothing overflows).  With gamma_t = prod_{u<=t} alpha_u, inside a chunk:

    A_ti = beta_t (gamma_t/gamma_i) <k_t, k_i>, i < t;   K_end,t = (gamma_C/gamma_t) k_t;   Y (I + A) = K_end^T
    M_end = (gamma_C I - Y diag(beta gamma) K) M_0 + Y diag(beta) V

B batch, S segments, T tokens of a segment, H memory heads (of this rank), d width of a head, C tokens of a chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.layout import Layout
from model.memory.segmental import SegmentalMemory
from model.parallel import ColumnParallel, sharded_parameter

SQUARED = 8  # longest system inverted by repeated squaring: the powers of A grow like binomial coefficients
STRETCH = 0.1  # how far the sparse input gate's sigmoid reaches below 0 and above 1
CHUNK = 64  # longest chunk whose triangular system is solved at once


class DeltaMemory(SegmentalMemory):
    """See the module's text.  The state is a d x d matrix per head, whatever has been read."""

    def __init__(self, config: ModelConfig, layout: Layout) -> None:
        super().__init__(config, layout, rows=config.hidden_size // config.memory.heads)
        size, heads, tp = config.hidden_size, config.memory.heads, layout.tensor
        self.sparse = config.memory.sparse_writes
        self.gate_in = ColumnParallel(size, heads, tp)
        self.gate_in_bias = sharded_parameter((heads,), tp)
        self.gate_forget = ColumnParallel(size, heads, tp)
        self.gate_forget_bias = sharded_parameter((heads,), tp)

    def initial_value(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if name == "gate_forget_bias":  # half-lives spread from about 100 to 10,000 tokens over the heads
            rates = torch.logspace(-2, -4, shape[0])
            return rates.expm1().log()  # the inverse of softplus
        return super().initial_value(name, shape, generator)

    def writes(self, tokens: Tensor, writable: Tensor | None) -> tuple[Tensor, Tensor]:
        """Each segment's transition, fp32 [B, S, H, d, d], and addition, fp32 [B, S, H, d, d]."""
        keys, values = self.address(self.key(tokens)), self.by_head(self.content(tokens))  # [B, S, H, T, d]
        beta = torch.sigmoid(self.by_head(self.gate_in(tokens).float() + self.gate_in_bias))  # [B, S, H, T, 1]
        log_alpha = -F.softplus(self.by_head(self.gate_forget(tokens).float() + self.gate_forget_bias))
        if self.sparse:
            # a stretched sigmoid, cut to 0..1: the many tokens of no interest are below the cut and write exactly zero
            beta = (beta * (1 + 2 * STRETCH) - STRETCH).clamp(0.0, 1.0)
            log_alpha = log_alpha * beta
        self.record_gate("in", beta)
        self.record_gate("forget", log_alpha.exp())
        if writable is not None:  # a token of another document changes nothing
            mine = writable[:, :, None, :, None]
            beta, log_alpha = beta * mine, log_alpha * mine
        for name, x in (("key", keys), ("strength", beta), ("log_decay", log_alpha), ("content", values)):
            self.show(name, x)
        transition, added = None, None
        for chunk in zip(*(x.split(CHUNK, dim=3) for x in (keys, values, beta, log_alpha)), strict=True):
            p, q = chunk_product(*chunk)
            if transition is None or added is None:
                transition, added = p, q
            else:
                transition, added = p @ transition, p @ added + q
        assert transition is not None and added is not None
        return transition, added


def chunk_product(keys: Tensor, values: Tensor, beta: Tensor, log_alpha: Tensor) -> tuple[Tensor, Tensor]:
    """A chunk's delta-rule writes as M -> P M + Q.

    Args: unit keys [..., C, d], values [..., C, d], beta [..., C, 1] in 0..1, log_alpha [..., C, 1] <= 0, all fp32.
    Returns P and Q, [..., d, d].
    """
    log_gamma = log_alpha.cumsum(dim=-2)  # [..., C, 1]
    gamma, last = log_gamma.exp(), log_gamma[..., -1:, :]
    ratio = (log_gamma - log_gamma.transpose(-1, -2)).clamp(max=0.0).exp()  # above the diagonal it would overflow
    system = (beta * ratio * (keys @ keys.transpose(-1, -2))).tril(-1)  # A; the diagonal of ones is implied
    end = ((last - log_gamma).exp() * keys).transpose(-1, -2)  # K_end^T [..., d, C]
    if keys.is_cuda:  # a triangular solve cannot be fused, and waits for the device
        solved = solved_in_blocks(system, end)
    else:
        solved = torch.linalg.solve_triangular(system, end, upper=False, left=False, unitriangular=True)
    y = solved * beta.transpose(-1, -2)
    identity = torch.eye(keys.size(-1), dtype=keys.dtype, device=keys.device)
    return last.exp() * identity - (y * gamma.transpose(-1, -2)) @ keys, y @ values


def solved_in_blocks(system: Tensor, right: Tensor) -> Tensor:
    """X with X (I + A) = `right` [..., d, C], for strictly lower triangular A [..., C, C], by products alone.

    Halves until a block is small: X_2 = R_2 (I + A_22)^-1, X_1 = (R_1 - X_2 A_21) (I + A_11)^-1.  In a block A^n is 0:
    its inverse is the product of I + (-A)^(2^k) over 2^k < n.
    """
    size = system.size(-1)
    if size > SQUARED:
        half = size // 2
        second = solved_in_blocks(system[..., half:, half:], right[..., half:])
        first = solved_in_blocks(system[..., :half, :half], right[..., :half] - second @ system[..., half:, :half])
        return torch.cat((first, second), dim=-1)
    power, solved, reached = -system, right, 1
    while reached < size:
        solved = solved + solved @ power
        power, reached = power @ power, 2 * reached
    return solved
