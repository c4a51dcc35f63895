"""Read a million tokens with a model whose state does not grow.

    python examples/million_tokens.py
    python examples/million_tokens.py --checkpoint runs/quickstart --tokens 200000

Without --checkpoint the model is new: the point is the size of what is carried, not what the model says.
"""

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import LanguageModel, MemoryConfig, ModelConfig, build_model
from model.generation import prefill


def new_model() -> LanguageModel:
    config = ModelConfig(
        vocab_size=1024, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, ffn_size=128,
        segment_length=64, memory=MemoryConfig(kind="delta", heads=4),
    )  # fmt: skip
    return build_model(config, seed=0).eval()


def size_of(value: Any) -> int:
    """Bytes of all tensors in a state, however it is nested."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(size_of, value))
    return size_of(vars(value)) if hasattr(value, "__dict__") else 0


def peak_mib() -> float:
    """Largest memory that this process has had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="tokens to read (default 1,000,000)")
    parser.add_argument("--checkpoint", type=Path, help="run or checkpoint folder; default: a new small model")
    options = parser.parse_args()
    if options.checkpoint is None:
        net = new_model()
    else:
        from training.checkpoint.trained_model import load_trained

        net = load_trained(options.checkpoint).net
    generator, state, read, started = torch.Generator().manual_seed(0), None, 0, time.perf_counter()
    # the same number of tokens at a time, so that only what is carried could grow
    segment = net.config.segment_length  # whole segments: an open one is a part of the state
    part = max(1, min(options.tokens // 16, 65536) // segment) * segment
    print("    tokens   state    peak of the process   tokens/s")
    while read < options.tokens:
        ids = torch.randint(0, net.config.vocab_size, (1, min(part, options.tokens - read)), generator=generator)
        logits, state = prefill(net, ids, state)
        read += ids.size(1)
        speed = read / (time.perf_counter() - started)
        print(f"{read:>10,}   {size_of(state) / 1024:.0f} KiB  {peak_mib():,.0f} MiB  {speed:,.0f}", flush=True)
    print(f"the next token's likeliest: {int(logits.argmax())}")


if __name__ == "__main__":
    main()
