"""Which tokens of a reference a head keeps (Memory3, section 3)."""

from typing import Literal

import torch
from torch import Tensor

_TIE = 1e-6  # relative difference of scores: above fp32 rounding, far below that between two different words


@torch.no_grad()
def received_attention(q: Tensor, k: Tensor, lengths: Tensor, kind: Literal["softmax", "exp"]) -> Tensor:
    """Return log w_j, the logarithm of the attention that each token j of a reference receives.

    Kind `softmax`: w_j = sum_i softmax_j(q_i . k_j / sqrt(d)). Kind `exp`, of the published run:
    w_j = sum_i exp(q_i . k_j / sqrt(d)), which would overflow without the logarithm. i and j run over the reference's
    own tokens, not over BOS or padding, without a causal mask. Query heads that share a key/value head are summed.

    Args: q [R, n, H, d] and k [R, n, Hkv, d], without rotary embedding; lengths int64 [R].
    Returns fp32 [R, Hkv, n]; -inf beyond a reference's length.
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
    """Return int64 [R, Hkv, count], the tokens with the highest scores, the highest first; scores [R, Hkv, n].

    Equal scores go to the earlier token, so that rounding does not decide; a word that comes twice has equal scores in
    the first block.
    """
    place = torch.arange(scores.size(-1), device=scores.device)
    return (scores - _TIE * place * scores.abs().clamp(1, 1e9)).topk(count, dim=-1).indices


def take(x: Tensor, chosen: Tensor, lengths: Tensor) -> Tensor:
    """Take tokens `chosen` int64 [R, Hkv, k] of keys or values [R, n, Hkv, d]: [R, k, Hkv, d], zero beyond lengths."""
    references, heads = (torch.arange(size, device=x.device) for size in chosen.shape[:2])
    taken = x[references[:, None, None], chosen.transpose(1, 2), heads]  # `gather` would keep x for the backward pass
    present = torch.arange(chosen.size(-1), device=x.device) < lengths.unsqueeze(1)  # [R, k]
    return taken * present[:, :, None, None].to(x.dtype)
