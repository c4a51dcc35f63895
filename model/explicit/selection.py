"""Which tokens of a reference a head keeps (Memory3, section 3)."""

from typing import Literal

import torch
from torch import Tensor

_TIE = 1e-6  # relative: above the rounding of fp32, far below what two different words differ by


@torch.no_grad()
def received_attention(q: Tensor, k: Tensor, lengths: Tensor, kind: Literal["softmax", "exp"]) -> Tensor:
    """log w_j, w_j = sum_i softmax_j(q_i . k_j / sqrt(d)), of each token j of a reference; its logarithm, so that kind
    `exp`, the published run's w_j = sum_i exp(q_i . k_j / sqrt(d)), cannot overflow.

    No causal mask; i and j run over the reference's own tokens, not BOS, not padding.  Query heads that share a
    key/value head are summed.

    Args: q [R, n, H, d] and k [R, n, Hkv, d], both without positions; lengths int64 [R].
    Returns fp32 [R, Hkv, n]; -inf where there is no token.
    """
    grouped = q.unflatten(2, (k.size(2), -1)).float()  # [R, n, Hkv, group, d]
    scores = torch.einsum("righd,rjgd->rghij", grouped, k.float()) * q.size(-1) ** -0.5
    absent = torch.arange(q.size(1), device=q.device) >= lengths.unsqueeze(1)  # [R, n]
    here, there = absent[:, None, None, :, None], absent[:, None, None, None, :]
    if kind == "exp":
        received = scores.masked_fill(here, float("-inf")).logsumexp(dim=(2, 3))
    else:
        weights = scores.masked_fill(there, torch.finfo(torch.float32).min).softmax(dim=-1)
        received = weights.masked_fill(here, 0.0).sum(dim=(2, 3)).log()
    return received.masked_fill(absent.unsqueeze(1), float("-inf"))


def select(scores: Tensor, count: int) -> Tensor:
    """int64 [R, Hkv, count]: the tokens with the highest scores, logarithms [R, Hkv, n], highest first.

    Of equal ones, as a word that comes twice has in the first block, the earlier: rounding must not decide.
    """
    place = torch.arange(scores.size(-1), device=scores.device)
    return (scores - _TIE * place * scores.abs().clamp(1, 1e9)).topk(count, dim=-1).indices


def take(x: Tensor, chosen: Tensor, lengths: Tensor) -> Tensor:
    """Keys or values [R, n, Hkv, d] of the chosen tokens [R, Hkv, k] -> [R, k, Hkv, d], zero beyond the length."""
    rows, heads = (torch.arange(size, device=x.device) for size in chosen.shape[:2])
    taken = x[rows[:, None, None], chosen.transpose(1, 2), heads]  # gather would keep x for its backward
    present = torch.arange(chosen.size(-1), device=x.device) < lengths.unsqueeze(1)  # [R, k]
    return taken * present[:, :, None, None].to(x.dtype)
