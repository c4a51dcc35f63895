"""Inner operations of the memories that flow through time, with explicit backward passes.

With plain autograd they are several times slower: it keeps every intermediate of the loop over segments, and passes
over each array once per elementary operation. Tests compare them with `torch.autograd.gradcheck` and the slow
references. A compiled layer uses the plain formulas instead, because the compiler fuses their passes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.parallel_context import SegmentParallel


def normalise(x: Tensor, eps: float, length: float = 1.0) -> Tensor:
    """Return x / sqrt(|x|^2 + eps) * length over the last axis, fp32."""
    if torch.compiler.is_compiling():
        return x * (torch.rsqrt(x.square().sum(-1, keepdim=True) + eps) * length)
    return _Normalise.apply(x, eps, length)


def address(x: Tensor, scale: float) -> Tensor:
    """Return the unit vector along phi(scale * x) over the last axis, phi(z) = elu(z) + 1 > 0, fp32."""
    if torch.compiler.is_compiling():
        phi = F.elu(x * scale) + 1.0
        return phi * torch.rsqrt(phi.square().sum(-1, keepdim=True).clamp(min=1e-24))
    return _Address.apply(x, scale)


def scan(
    bank: Tensor, transition: Tensor, added: Tensor, ranks: SegmentParallel | None = None
) -> tuple[Tensor, Tensor]:
    """Compute M_{s+1} = transition_s M_s + added_s over the segments. Collective over `ranks`.

    Args: bank [B, H, N, d]; transition [B, S, H, N, 1], a factor for each slot, or [B, S, H, N, N], a matrix;
        added [B, S, H, N, d]; ranks: those that share each sample's segments, None: this one. The bank comes from
        the rank before (only the first uses `bank`) and goes to the rank after; its gradient goes the other way.
    Returns: the banks that enter the segments, [B, S, H, N, d], and the one that leaves the last, [B, H, N, d].
    """
    if torch.compiler.is_compiling():
        return _plain_scan(bank, transition, added)
    return _Scan.apply(bank, transition, added, ranks or SegmentParallel())


def decayed_keys(keys: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    """Decay each write by the forgetting of the segment's later tokens.

    Args: keys k [..., T, N]; strength delta [..., T, 1].
    Returns: the keys at the segment's end and the share that is kept of each slot's content before the segment:
        k_tn exp(-sum_{u>t} delta_u k_un^2), [..., T, N], and exp(-sum_t delta_t k_tn^2), [..., 1, N].
    """
    if torch.compiler.is_compiling():
        decay = (strength * keys.square()).cumsum(dim=-2)
        total = decay[..., -1:, :]
        return keys * torch.exp(decay - total), torch.exp(-total)
    return _DecayedKeys.apply(keys, strength)


class _Normalise(torch.autograd.Function):
    """y = c rho x, rho = (|x|^2 + eps)^(-1/2); dx = c rho (dy - y (y.dy) / c^2)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, length: float) -> Tensor:
        factor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().add_(eps).rsqrt_().mul_(length)
        y = x * factor
        ctx.save_for_backward(y, factor)
        ctx.length = length
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        y, factor = ctx.saved_tensors
        along = torch.linalg.vecdot(y, dy).unsqueeze(-1).div_(-(ctx.length**2))
        return torch.addcmul(dy, y, along).mul_(factor), None, None


class _Address(torch.autograd.Function):
    """y = rho phi, phi = elu(c x) + 1, rho = 1 / |phi|; phi' = min(phi, 1): dx = c min(phi, 1) rho (dy - y (y.dy))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        phi = F.elu(x * scale).add_(1.0)
        rho = torch.linalg.vector_norm(phi, dim=-1, keepdim=True).clamp_(min=1e-12).reciprocal_()
        ctx.save_for_backward(phi, rho)
        ctx.scale = scale
        return phi * rho

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        phi, rho = ctx.saved_tensors
        y = phi * rho
        along = torch.linalg.vecdot(y, dy).unsqueeze(-1).neg_()
        return torch.addcmul(dy, y, along).mul_(phi.clamp(max=1.0)).mul_(rho * ctx.scale), None


class _Scan(torch.autograd.Function):
    """The scan. The gradient G_s of M_s follows the same recurrence in reverse: G_s = transition_s^T G_{s+1} + dM_s.

    d added_s = G_{s+1}; d transition_s = G_{s+1} M_s^T (its diagonal where the transition is a factor).
    """

    @staticmethod
    def forward(
        ctx: Any, bank: Tensor, transition: Tensor, added: Tensor, ranks: SegmentParallel
    ) -> tuple[Tensor, Tensor]:
        size = added.size(1)
        banks = added.new_empty(added.size(0), size + 1, *added.shape[2:])
        banks[:, 0] = bank if ranks.is_first else ranks.receive(bank, -1)
        for s in range(size):
            _step(transition[:, s], banks[:, s], added[:, s], out=banks[:, s + 1])
        if not ranks.is_last:
            ranks.send(banks[:, -1], +1)
        ctx.save_for_backward(transition, banks)
        ctx.ranks = ranks
        return banks[:, :-1], banks[:, -1].clone()

    @staticmethod
    def backward(ctx: Any, d_entering: Tensor, d_last: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        transition, banks = ctx.saved_tensors
        ranks: SegmentParallel = ctx.ranks
        matrices = transition.size(-1) > 1
        backwards = transition.transpose(-1, -2) if matrices else transition
        gradients = torch.empty_like(banks)
        gradients[:, -1] = d_last if ranks.is_last else d_last + ranks.receive(d_last, +1)
        for s in reversed(range(transition.size(1))):
            _step(backwards[:, s], gradients[:, s + 1], d_entering[:, s], out=gradients[:, s])
        if not ranks.is_first:
            ranks.send(gradients[:, 0], -1)
        entering, d_added = banks[:, :-1], gradients[:, 1:]
        if matrices:
            d_transition = d_added @ entering.transpose(-1, -2)
        else:
            d_transition = torch.linalg.vecdot(d_added, entering).unsqueeze(-1)
        return gradients[:, 0] if ranks.is_first else None, d_transition, d_added, None


def _step(transition: Tensor, bank: Tensor, added: Tensor, out: Tensor) -> None:
    """Write transition bank + added to `out`; transition [B, H, N, 1] or [B, H, N, N], the others [B, H, N, d]."""
    if transition.size(-1) > 1:
        torch.add(transition @ bank, added, out=out)
    else:
        torch.addcmul(added, transition, bank, out=out)


def _plain_scan(bank: Tensor, transition: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """`scan` on one rank, in plain operations."""
    banks = [bank]
    for s in range(added.size(1)):
        step = transition[:, s]
        kept = step @ banks[-1] if step.size(-1) > 1 else step * banks[-1]
        banks.append(kept + added[:, s])
    return torch.stack(banks[:-1], dim=1), banks[-1]


class _DecayedKeys(torch.autograd.Function):
    """With w the decayed keys and g = dw * w, the gradient of delta_u k_un^2 is -sum_{t<u} g_tn - kept dkept."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        decay = (strength * keys.square()).cumsum(dim=-2)  # summed from the segment's begin to each token
        total = decay[..., -1:, :].neg()
        decay.add_(total).exp_()
        kept = total.exp_()
        decayed = decay * keys
        ctx.save_for_backward(keys, strength, decay, kept)
        return decayed, kept

    @staticmethod
    def backward(ctx: Any, d_decayed: Tensor, d_kept: Tensor) -> tuple[Tensor, Tensor]:
        keys, strength, decay, kept = ctx.saved_tensors
        d_keys = d_decayed * decay
        d_log = d_keys * keys
        d_erased = d_log - d_log.cumsum(dim=-2)
        d_erased.sub_(kept * d_kept).mul_(keys)
        d_strength = torch.linalg.vecdot(d_erased, keys).unsqueeze(-1)
        return d_keys.addcmul_(d_erased, 2 * strength), d_strength
