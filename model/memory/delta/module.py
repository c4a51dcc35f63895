"""Associative matrix memory: the delta rule with learned decay (gated DeltaNet, arXiv 2412.06464) and LM2's gates.

Per head, with positive unit keys k_t and queries q_t (elu + 1, normalised), for every token t of a segment in turn:

    M <- alpha_t (I - beta_t k_t k_t^T) M + beta_t k_t v_t^T        M in R^{d x d}, rows are key directions

beta_t = sigmoid(W_in h) is the input gate: how much of what k_t recalls is replaced by v_t = W_c h;
alpha_t = exp(-softplus(W_forget h)) the forget gate. Tokens of a segment read only what earlier segments wrote,

    out = W_o (sigmoid(W_out h) * rms(q_t^T M_s))

so only the matrix at each segment's end is needed, and the product of a chunk of C tokens is exact in closed form
(arXiv 2406.06484; decays as ratios <= 1, so nothing overflows). With gamma_t = prod_{u<=t} alpha_u, inside a chunk:

    A_ti = beta_t (gamma_t/gamma_i) <k_t, k_i>, i < t;   K_end,t = (gamma_C/gamma_t) k_t;   Y (I + A) = K_end^T
    M_end = gamma_C M_0 + Y diag(beta) (V - diag(gamma) K M_0)

B batch, S segments, T tokens of a segment, H memory heads (of this rank), d width of a head, C tokens of a chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.backbone import BackboneConfig
from model.memory.delta.chunks import by_chunk, by_segment, carry, chunk_factors, compose
from model.memory.delta.kernels import delta_segment, takes
from model.memory.delta.spec import DeltaConfig, chunk_length
from model.memory.operations import address
from model.memory.segmental import Projected, SegmentalMemory
from model.parallel import ColumnParallel, sharded_parameter
from model.parallel_context import ParallelContext
from model.segments import SegmentSpan

STRETCH = 0.1  # how far the sparse input gate's sigmoid reaches below 0 and above 1


class DeltaMemory(SegmentalMemory):
    """The layer that the module's docstring describes. Its state is a d x d matrix per head, constant in size."""

    def __init__(self, config: DeltaConfig, model: BackboneConfig, parallel: ParallelContext) -> None:
        super().__init__(config, model, parallel, num_slots=model.hidden_size // config.heads)
        size, heads, tp = model.hidden_size, config.heads, parallel.tensor
        self.sparse = config.sparse_writes
        self.gate_in = ColumnParallel(size, heads, tp)
        self.gate_in_bias = sharded_parameter((heads,), tp)
        self.gate_forget = ColumnParallel(size, heads, tp)
        self.gate_forget_bias = sharded_parameter((heads,), tp)

    def initial_value(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if name == "gate_forget_bias":  # half-lives spread from about 100 to 10,000 tokens over the heads
            rates = torch.logspace(-2, -4, shape[0])
            return rates.expm1().log()  # the inverse of softplus
        return super().initial_value(name, shape, generator)

    def written(self, projected: Projected, span: SegmentSpan, bank: Tensor) -> tuple[Tensor, Tensor]:
        beta, log_alpha = self._strengths(projected, span.writable)
        alone = self.segments.size == 1
        if alone and takes(projected[0], self.width) and self.tape is None:
            return self._by_kernel(projected, beta, log_alpha, span, bank)
        factors = chunk_factors(*self._operands(projected, beta, log_alpha))
        if alone and bank.device.type == "cpu" and not torch.compiler.is_compiling():
            return carry(bank, factors, span.segments, span.continues)
        transition, added = (x.unflatten(1, bank.shape[:2]).transpose(0, 1) for x in compose(factors, span.segments))
        return self.scanned(bank, transition, added, span)

    def _strengths(self, projected: Projected, writable: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return beta and log alpha, fp32 [B, S, T, H]; both are zero where `writable` is False."""
        *_, gate_in, gate_forget = projected
        beta = torch.sigmoid(gate_in.float() + self.gate_in_bias)
        log_alpha = -F.softplus(gate_forget.float() + self.gate_forget_bias)
        if self.sparse:
            # a sigmoid stretched beyond 0..1 and clamped: tokens below the clamp write exactly zero
            beta = (beta * (1 + 2 * STRETCH) - STRETCH).clamp(0.0, 1.0)
            log_alpha = log_alpha * beta
        self.record_gate("in", beta)
        self.record_gate("forget", log_alpha.exp())
        if writable is not None:  # a token of another document changes nothing
            beta, log_alpha = beta * writable.unsqueeze(-1), log_alpha * writable.unsqueeze(-1)
        return beta, log_alpha

    def _operands(self, projected: Projected, beta: Tensor, log_alpha: Tensor) -> tuple[Tensor, ...]:
        """Return keys, values [J, B*H, C, d], beta and log alpha [J, B*H, C, 1] of all chunks, fp32."""
        key, content, *_ = projected
        batch, segments, tokens, _ = key.shape
        length = chunk_length(tokens, self.width)
        key, content, beta, log_alpha = (
            by_chunk(x.float(), length, self.heads) for x in (key, content, beta, log_alpha)
        )
        keys = address(key, self.sharpness)
        if self.tape is not None:
            named = {"key": keys, "strength": beta, "log_decay": log_alpha, "content": content}
            for name, x in named.items():
                self.show(name, by_segment(x, batch, segments, tokens))
        return keys, content, beta, log_alpha

    def _by_kernel(
        self, projected: Projected, beta: Tensor, log_alpha: Tensor, span: SegmentSpan, bank: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What `written` returns, one call of the kernel a segment."""
        key, content, *_ = projected
        keys = address(key.float().unflatten(-1, (self.heads, -1)), self.sharpness).to(key.dtype)  # [B, S, T, H, d]
        values = content.unflatten(-1, (self.heads, -1))
        banks = []
        for s in range(span.segments):
            banks.append(bank)
            start = bank if span.continues is None else bank * span.continues[:, s, None, None, None]
            operands = (x[:, s].contiguous() for x in (keys, values, log_alpha, beta))
            bank = delta_segment(*operands, start.contiguous())
        return torch.stack(banks, dim=1), bank
