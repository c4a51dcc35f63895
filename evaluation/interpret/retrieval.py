"""The exact weight of each earlier token's write in a read, for the memories that flow through time.

A bank is a sum of writes, each of which later writes decay, so a read is linear attention over the writes:

    r_t = q_t^T M = sum_u a_tu c_u

The weights are computed from the newest write u to the oldest; each changes the query q for those before it:

    lm2      a_u = <q, k_u>,          q <- exp(-delta_u k_u^2) * q                    (eq. 6 with decaying slots)
    delta    a_u = beta_u <q, k_u>,   q <- alpha_u (q - beta_u <q, k_u> k_u)          (the delta rule)

R reads, U writes, H heads, N slots of the bank.
"""

import torch
from torch import Tensor


def retrieved(queries: Tensor, writes: dict[str, Tensor]) -> Tensor:
    """Return the weight of every write in every read of the bank that these writes left.

    Args: queries fp32 [R, H, N]; writes of U tokens in order: key [U, H, N], strength [U, H, 1] (delta of lm2, beta of
    delta) and, of the delta rule, log_decay [U, H, 1].
    Returns: fp32 [R, H, U]; `retrieved @ content` is the read.
    """
    keys, strength, log_decay = writes["key"], writes["strength"], writes.get("log_decay")
    q = queries.double()
    weights = q.new_zeros(*queries.shape[:2], keys.size(0))
    for u in range(keys.size(0) - 1, -1, -1):
        key, amount = keys[u].double(), strength[u].double()  # [H, N], [H, 1]
        match_ = (q * key).sum(dim=-1)  # [R, H]
        if log_decay is None:
            weights[:, :, u] = match_
            q = q * torch.exp(-amount * key.square())
        else:
            weights[:, :, u] = amount[:, 0] * match_
            q = log_decay[u].double().exp() * (q - (amount[:, 0] * match_).unsqueeze(-1) * key)
    return weights.float()
