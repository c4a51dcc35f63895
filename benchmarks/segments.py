"""Segments at once against one after another, and what a token costs far into a text.

    python benchmarks/segments.py

Ratios of medians within one run, fp32 on the CPU's cores.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import claim, interleaved_seconds
from model import LanguageModel, MemoryConfig, ModelConfig, StreamState, build_model
from model.generation import prefill
from model.memory.interface import RecurrentMemory, memories
from model.segments import spans
from training.distributed.devices import keep_freed_memory

SEGMENTS = 32
SIZES = [(32, 128), (64, 128), (32, 256)]  # tokens of a segment, width; what is claimed is the first
KINDS = {
    "lm2 flow: time": MemoryConfig(kind="lm2", flow="time", slots=64, heads=4),
    "delta": MemoryConfig(kind="delta", heads=4),
}


def config(memory: MemoryConfig, segment: int, width: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=512,
        hidden_size=width,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        ffn_size=2 * width,
        segment_length=segment,
        memory=memory,
    )


def memory_step(memory: RecurrentMemory, tokens: Tensor, segment: int, at_once: bool) -> Callable[[], None]:
    """Forward and backward of one memory module over all segments."""
    cut = list(spans(0, tokens.size(1), segment, 1, sequential=not at_once))

    def step() -> None:
        state, outputs = memory.initial_state(tokens), []
        for span in cut:
            output, state = memory(tokens[:, span.begin : span.end], span, state)
            outputs.append(output)
        torch.cat(outputs, dim=1).square().mean().backward()

    return step


def at_once_or_in_turn() -> None:
    print(f"{SEGMENTS} segments, batch 1, forward and backward of one memory module")
    ratios: dict[str, float] = {}
    for segment, width in SIZES:
        for name, kind in KINDS.items():
            memory = memories(build_model(config(kind, segment, width)))[0]
            assert isinstance(memory, RecurrentMemory)
            torch.nn.init.normal_(memory.get_parameter("out.weight"), std=0.02)
            tokens = torch.randn(1, SEGMENTS * segment, width, requires_grad=True)
            steps = [memory_step(memory, tokens, segment, at_once) for at_once in (True, False)]
            together, in_turn = interleaved_seconds(steps, rounds=15)
            times = f"at once {together * 1e3:6.1f} ms, one after another {in_turn * 1e3:6.1f} ms"
            print(f"  {name:16s} T {segment}, width {width}: {times}: {in_turn / together:.2f}x")
            ratios.setdefault(name, in_turn / together)
    for name, ratio in ratios.items():
        claim(f"{SEGMENTS} segments at once over one after another, {name}", ratio, ">= 4", ratio >= 4)


def state_bytes(state: StreamState) -> int:
    """Bytes of everything that is carried."""
    parts = [t for layer in state.layers for t in (layer.keys, layer.values, *vars(layer.memory).values())]
    return sum(t.numel() * t.element_size() for t in parts)


@torch.no_grad()
def seconds_per_token(net: LanguageModel, state: StreamState, tokens: int = 256) -> float:
    """Mean time of decoding `tokens` tokens; a whole number of segments, so that the open segment's share is even."""
    started = time.perf_counter()
    for token in range(tokens):
        _, state = prefill(net, torch.tensor([[token % 512]]), state)
    return (time.perf_counter() - started) / tokens


def far_into_a_text() -> None:
    print("decoding after a prompt, batch 1, segments of 256")
    for name, kind in KINDS.items():
        net = build_model(config(kind, segment=256, width=256))
        for memory in memories(net):
            torch.nn.init.normal_(memory.get_parameter("out.weight"), std=0.02)
        ids = torch.randint(0, 512, (1, 65536), generator=torch.Generator().manual_seed(0))
        _, early = prefill(net, ids[:, :4096])
        logits, late = prefill(net, ids[:, 4096:], early)
        with torch.no_grad():
            hidden, _ = net.hidden(ids)  # the whole prompt in one call
            difference = float((net.head.logits(hidden[:, -1]) - logits).abs().max())
        rounds = [(seconds_per_token(net, early), seconds_per_token(net, late)) for _ in range(3)]
        at_4k, at_64k = (min(times) for times in zip(*rounds, strict=True))
        sizes = state_bytes(early), state_bytes(late)
        print(f"  {name:16s} 4K {at_4k * 1e3:.2f} ms a token, 64K {at_64k * 1e3:.2f} ms; state {sizes[0]:,} bytes")
        claim(f"time a token at 64K over 4K, {name}", at_64k / at_4k, "<= 1.10", at_64k / at_4k <= 1.10)
        claim(f"state bytes at 64K over 4K, {name}", sizes[1] / sizes[0], "== 1", sizes[0] == sizes[1])
        claim(f"logits after 64K in parts against one call, {name}", difference, "<= 1e-4", difference <= 1e-4)


if __name__ == "__main__":
    torch.manual_seed(0)
    keep_freed_memory()
    at_once_or_in_turn()
    far_into_a_text()
