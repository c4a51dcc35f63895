"""The library that a run chooses for the fp32 products of a layer on this CPU, against torch's default BLAS.

    python benchmarks/linear.py

Forward and backward of one linear layer, one thread, ratios within one run.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import claim, interleaved_seconds
from model.linear import choose_library, linear
from training.engine.cpu_products import MARGIN, measure

SHAPES = [(2048, 128, 688), (2048, 512, 512), (2048, 512, 2048), (2048, 2048, 2048)]  # rows, in, out


def step(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> Callable[[], None]:
    """Forward and both gradients."""
    gradient = torch.randn(x.size(0), weight.size(0))
    return lambda: product(x, weight).backward(gradient)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for rows, size_in, size_out in SHAPES:
        x = torch.randn(rows, size_in, requires_grad=True)
        weight = torch.randn(size_out, size_in, requires_grad=True)
        onednn = choose_library(measure(rows, size_in, size_out) * MARGIN > 1)
        ours, default = interleaved_seconds([step(linear, x, weight), step(F.linear, x, weight)])
        flops = 6 * rows * size_in * size_out
        print(
            f"{rows} x {size_in} -> {size_out}: {flops / ours / 1e9:.0f} GFLOP/s by "
            f"{'oneDNN' if onednn else 'the default'}, default {flops / default / 1e9:.0f}"
        )
        met = default / ours >= 1 / MARGIN  # where the default is nearly as fast, oneDNN stays
        claim(f"linear {size_in} -> {size_out}: default BLAS over ours", default / ours, f">= {1 / MARGIN:.2f}", met)


if __name__ == "__main__":
    main()
