"""The delta rule over chunks of tokens, all chunks of all segments in one batch.

A chunk of C tokens maps the matrix M before it to (`model.memory.delta.module` defines the symbols)

    M_end = gamma_C M + Y (V - W M),   Y = K_end^T (I + A)^-1 diag(beta),  W = diag(gamma) K

Y and W depend on the chunk's tokens alone (`chunk_factors`). Chunks are then joined in one of two ways. `carry` applies
them to the bank in order, which costs least: 2 C d^2 multiply-adds a chunk. `compose` joins pairs of neighbours into
each segment's map M -> P M + Q, in few large products that do not need the bank.

J chunks, S segments of n = J/S chunks, B batch, H memory heads (of this rank), d width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.memory.delta.spec import BLOCK


def by_chunk(x: Tensor, length: int, heads: int) -> Tensor:
    """[B, S, T, H*n] -> [J, B*H, C, n], contiguous; a short last chunk is padded with zeros."""
    missing = -x.size(2) % length
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    x = x.unflatten(3, (heads, -1)).unflatten(2, (-1, length))  # [B, S, n, C, H, ...]
    return x.permute(1, 2, 0, 4, 3, 5).contiguous().flatten(2, 3).flatten(0, 1)


def by_segment(x: Tensor, batch: int, segments: int, tokens: int) -> Tensor:
    """[J, B*H, C, n] -> [B, S, H, T, n], the inverse of `by_chunk` without its padding."""
    x = x.unflatten(0, (segments, -1)).unflatten(2, (batch, -1)).permute(2, 0, 3, 1, 4, 5)
    return x.flatten(3, 4)[:, :, :, :tokens]


def chunk_factors(keys: Tensor, values: Tensor, beta: Tensor, log_alpha: Tensor) -> tuple[Tensor, ...]:
    """Return the factors of the map that each chunk applies to the matrix before it.

    Args: unit keys [..., C, d], values [..., C, d], beta [..., C, 1] in 0..1, log_alpha [..., C, 1] <= 0, all fp32;
        C is a block times a power of two. A token with beta = log_alpha = 0 changes nothing.
    Returns: Y^T, V and W, [..., C, d], and gamma_C, [..., 1, 1].
    """
    y, w, gamma = _Factors.apply(keys, beta, log_alpha)
    return y, values, w, gamma


def carry(bank: Tensor, factors: tuple[Tensor, ...], segments: int, continues: Tensor | None) -> tuple[Tensor, Tensor]:
    """Apply all chunks to the bank in order.

    Args: bank [B, H, d, d]; factors of J chunks, [J, B*H, ...]; continues bool [B, S], False: the segment begins with
        an empty bank; None: every segment continues.
    Returns: the banks that enter the segments, [B, S, H, d, d], and the one that leaves the last, [B, H, d, d].
    """
    keeps = None
    if continues is not None:
        keeps = continues.t().to(bank.dtype).repeat_interleave(bank.size(1), dim=1)[..., None, None]  # [S, B*H, 1, 1]
    entering, last = _Carry.apply(bank.flatten(0, 1), *factors, keeps, segments)
    return entering.unflatten(1, bank.shape[:2]).transpose(0, 1), last.unflatten(0, bank.shape[:2])


def compose(factors: tuple[Tensor, ...], segments: int) -> tuple[Tensor, Tensor]:
    """Return P and Q of each segment, [S, B*H, d, d], from the factors of J chunks, [J, B*H, ...]."""
    y, v, w, gamma = (x.unflatten(0, (segments, -1)) for x in factors)
    eye = torch.eye(y.size(-1), dtype=y.dtype, device=y.device)
    p, q = gamma * eye - y.mT @ w, y.mT @ v  # [S, n, B*H, d, d]
    while p.size(1) > 1:
        even = p.size(1) // 2 * 2
        later = p[:, 1:even:2]
        joined = later @ p[:, 0:even:2], later @ q[:, 0:even:2] + q[:, 1:even:2]
        p, q = (torch.cat((new, old[:, even:]), dim=1) for new, old in zip(joined, (p, q), strict=True))
    return p.squeeze(1), q.squeeze(1)


def inverse(a: Tensor) -> Tensor:
    """Return (I + A)^-1 of strictly lower triangular A [..., C, C]; C is a block times a power of two.

    Diagonal blocks are inverted by their series, then pairs of neighbours are joined by substitution: the inverse of
    [[X, 0], [A, Z]] has -Z^-1 A X^-1 in its corner. The series of a whole chunk has terms that grow like binomial
    coefficients and cancel. Here no term is larger than the inverse itself, so that TF32 is precise enough.
    """
    block = _diagonal(a, BLOCK)
    x = torch.eye(BLOCK, dtype=a.dtype, device=a.device) - block
    x = x + x @ (block @ block)
    size = BLOCK
    while size < a.size(-1):
        corner = _diagonal(a, 2 * size)[..., size:, :size]
        first, second = x[..., 0::2, :, :], x[..., 1::2, :, :]
        below = torch.cat((-(second @ corner) @ first, second), dim=-1)
        x = torch.cat((F.pad(first, (0, size)), below), dim=-2)
        size *= 2
    return x.squeeze(-3)


def _diagonal(a: Tensor, size: int) -> Tensor:
    """Return the blocks on the diagonal of [..., C, C]: [..., C/size, size, size]."""
    blocks = a.unflatten(-2, (-1, size)).unflatten(-1, (-1, size))
    return blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


class _Factors(torch.autograd.Function):
    """Y^T, W and gamma_C of chunks, with A = beta D K K^T; D: decays between tokens, zero on and above the diagonal.

    With X = (I + A)^-1, E = K_end and Z = X^T E, Y^T = beta Z. Gradients: dE = X (beta dY^T), and dA = -Z dE^T below
    the diagonal.
    """

    @staticmethod
    def forward(ctx: Any, keys: Tensor, beta: Tensor, log_alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_gamma = log_alpha.cumsum(dim=-2)  # [..., C, 1]
        last = log_gamma[..., -1:, :]
        gamma, rest = log_gamma.exp(), (last - log_gamma).exp()
        # clamped, because exp would overflow above the diagonal
        decay = (log_gamma - log_gamma.mT).clamp_(max=0.0).exp_().tril_(-1)
        alike = keys @ keys.mT
        x = inverse(decay.mul(alike).mul_(beta))
        z = x.mT @ (rest * keys)
        ctx.save_for_backward(keys, beta, gamma, rest, decay, alike, x, z)
        return beta * z, gamma * keys, last.exp()

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dw: Tensor, d_last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys, beta, gamma, rest, decay, alike, x, z = ctx.saved_tensors
        d_beta = torch.linalg.vecdot(z, dy).unsqueeze(-1)
        d_end = x @ (beta * dy)
        d_rest = torch.linalg.vecdot(d_end, keys).unsqueeze(-1).mul_(rest)
        d_product = (z @ d_end.mT).mul_(decay).neg_()  # dA decay [..., C, C]
        d_decay = d_product * alike
        d_beta += d_decay.sum(dim=-1, keepdim=True)
        d_gamma = torch.linalg.vecdot(dw, keys).unsqueeze(-1).mul_(gamma)
        d_keys = (dw * gamma).addcmul_(d_end, rest)
        d_product.mul_(beta)
        d_keys += (d_product + d_product.mT) @ keys
        # the gradient of log_gamma; that of log_alpha sums it over the token and the tokens after it
        d_log = d_gamma.sub_(d_rest).addcmul_(beta, d_decay.sum(dim=-1, keepdim=True)).sub_(d_decay.mT @ beta)
        d_log[..., -1:, :] += d_rest.sum(dim=-2, keepdim=True) + d_last * gamma[..., -1:, :]
        return d_keys, d_beta, d_log.flip(-2).cumsum(dim=-2).flip(-2)


class _Carry(torch.autograd.Function):
    """The bank through chunks in order. The backward pass takes the gradient G of M through them in reverse order.

    With R = Y^T G, G before the chunk is gamma G - W^T R; dV = R, dW = -R M^T, dY^T = (V - W M) G^T, dgamma = <G, M>.
    """

    @staticmethod
    def forward(
        ctx: Any, bank: Tensor, y: Tensor, v: Tensor, w: Tensor, gamma: Tensor, keeps: Tensor | None, segments: int
    ) -> tuple[Tensor, Tensor]:
        n = y.size(0) // segments
        starts, written = y.new_empty(y.size(0) + 1, *bank.shape), torch.empty_like(v)
        entering = y.new_empty(segments, *bank.shape)
        starts[0] = bank
        for j in range(y.size(0)):
            if j % n == 0:
                entering[j // n] = starts[j]
                if keeps is not None:
                    starts[j] *= keeps[j // n]
            torch.sub(v[j], w[j] @ starts[j], out=written[j])
            torch.mul(starts[j], gamma[j], out=starts[j + 1]).baddbmm_(y[j].mT, written[j])
        bank, starts = starts[-1].clone(), starts[:-1]
        ctx.save_for_backward(y, w, gamma, starts, written, *([] if keeps is None else [keeps]))
        return entering, bank

    @staticmethod
    def backward(ctx: Any, d_entering: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        y, w, gamma, starts, written, *keeps = ctx.saved_tensors
        n = y.size(0) // d_entering.size(0)
        ends, dv = starts.new_empty(y.size(0) + 1, *d_last.shape), torch.empty_like(written)
        ends[-1] = d_last  # ends[j + 1]: gradient of the matrix after chunk j
        for j in reversed(range(y.size(0))):
            torch.bmm(y[j], ends[j + 1], out=dv[j])
            torch.mul(ends[j + 1], gamma[j], out=ends[j]).baddbmm_(w[j].mT, dv[j], alpha=-1)
            if j % n == 0:
                if keeps:
                    ends[j] *= keeps[0][j // n]
                ends[j] += d_entering[j // n]
        d_bank, ends = ends[0], ends[1:]
        dy, dw = written @ ends.mT, (dv @ starts.mT).neg_()
        d_gamma = torch.linalg.vecdot(ends.flatten(-2), starts.flatten(-2))[..., None, None]
        return d_bank, dy, dv, dw, d_gamma, None, None
