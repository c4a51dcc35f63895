"""The head and its cross entropy, computed in blocks of tokens, so that the logits of all tokens never fill memory.

A block's gradient is computed in the forward pass, from the same logits as its loss, so that none is computed twice.

N tokens, n tokens of a block, D width, V/tp entries of the vocabulary on this rank.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from model.cost import LOSS_BLOCK
from model.linear import linear
from model.parallel import TensorParallel


class HeadLoss:
    """A head's weighted cross entropy over a vocabulary split by the tensor-parallel ranks.

    compiled: compile the elementwise operations of a block into one function; block: logits computed at once, None:
    `LOSS_BLOCK` of the device.
    """

    def __init__(self, tp: TensorParallel, compiled: bool = False, block: int | None = None) -> None:
        self.tp, self.block = tp, block
        self._rows: _Rows = torch.compile(_rows, dynamic=False) if compiled and tp.size == 1 else _rows

    def __call__(self, hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Return the sum over all tokens of weight times loss in nats, fp32 []. Collective over the tensor group.

        Args: hidden: the normalised residual stream [B, L, D], with sequence parallelism [B, L/tp, D]; weight:
            [V/tp, D]; labels: int64 [B, L]; weights: fp32 [B, L].
        """
        x = self.tp.enter(hidden).flatten(0, 1)  # [N, D]
        step = max(1, (self.block or LOSS_BLOCK.get(x.device.type, LOSS_BLOCK["cuda"])) // weight.size(0))
        return _Blocks.apply(
            x, weight, labels.flatten(), weights.flatten(), step, self.tp, self._rows, torch.is_grad_enabled()
        )


# logits [n, V/tp], labels [n], weights [n], group, whether a gradient is needed -> losses in nats [n], gradient or None
_Rows = Callable[[Tensor, Tensor, Tensor, TensorParallel, bool], tuple[Tensor, Tensor | None]]


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        labels: Tensor,
        weights: Tensor,
        step: int,
        tp: TensorParallel,
        rows: _Rows,
        training: bool,
    ) -> Tensor:
        of_x, of_weight = (training and needed for needed in ctx.needs_input_grad[:2])
        nats = torch.empty_like(weights, dtype=torch.float32)
        dx = torch.empty_like(x) if of_x else None
        dw: Tensor | None = None
        gradient: Tensor | None
        product: Tensor | None
        for begin in range(0, len(x), step):
            part = slice(begin, begin + step)
            own = x[part]
            nats[part], gradient = rows(linear(own, weight), labels[part], weights[part], tp, of_x or of_weight)
            if gradient is None:
                continue
            gradient = gradient.to(x.dtype)
            if dx is not None:
                dx[part] = linear(gradient, weight.t())
            if of_weight:
                product = linear(gradient.t(), own.t())
                if step < len(x):  # several blocks are summed in fp32
                    product = product.float() if dw is None else dw.add_(product)
                dw = product
            gradient = product = None  # else they stand beside the next block's logits
        ctx.save_for_backward(dx, dw)
        ctx.dtype = weight.dtype
        return (nats * weights).sum()

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw = ctx.saved_tensors
        if dx is not None:
            dx = dx * d_loss.to(dx.dtype)
        if dw is not None:
            dw = torch.mul(dw, d_loss, out=torch.empty_like(dw, dtype=ctx.dtype))
        return dx, dw, *[None] * 6


def _rows(
    logits: Tensor, labels: Tensor, weights: Tensor, tp: TensorParallel, wants_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Return a block's losses in nats, fp32 [n], and the gradient [n, V/tp] of their weighted sum in the logits' dtype.

    Collective over the tensor group.
    """
    dtype, logits = logits.dtype, logits.float()
    if tp.size == 1:
        local, outside, log_probability = labels, None, F.log_softmax(logits, dim=-1)
        nats = -log_probability.gather(1, labels.unsqueeze(1)).squeeze(1)
    else:
        local = labels - tp.rank * logits.size(-1)
        outside = (local < 0) | (local >= logits.size(-1))
        local = local.masked_fill(outside, 0)
        peak = logits.amax(dim=-1)  # [n]
        dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=tp.group)
        logits = logits - peak.unsqueeze(-1)
        chosen = logits.gather(1, local.unsqueeze(1)).squeeze(1).masked_fill(outside, 0.0)
        sums = torch.stack((logits.exp().sum(dim=-1), chosen))
        dist.all_reduce(sums, group=tp.group)
        total = sums[0].log()
        nats, log_probability = total - sums[1], logits - total.unsqueeze(-1)
    if not wants_gradient:
        return nats, None
    if torch.compiler.is_compiling():  # the compiler fuses a comparison, not a scatter
        own_entry = torch.arange(logits.size(1), device=logits.device) == local.unsqueeze(1)
        probability = log_probability.exp()
        return nats, (torch.where(own_entry, probability - 1.0, probability) * weights.unsqueeze(1)).to(dtype)
    del logits  # frees one of three arrays of this size
    own = weights if outside is None else weights.masked_fill(outside, 0.0)
    gradient = log_probability.exp_().mul_(weights.unsqueeze(1))
    return nats, gradient.scatter_add_(1, local.unsqueeze(1), -own.unsqueeze(1)).to(dtype)
