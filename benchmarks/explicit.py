"""Decoding with explicit memory against without, and against the same references as text in the prompt.

    python benchmarks/explicit.py

A batch of prompts, then text token by token; every 64 tokens other references come from a file on disk.  Ratios of
medians within one run, fp32 on the CPU's cores, or bf16 with --device cuda.  The paper's own: 733 tokens/s with, 1,131
without (0.65; 128 tokens in and out, batch 32, memories from disk).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import claim, interleaved_seconds
from model import LanguageModel, ModelConfig, StreamState, build_model
from model.config import ExplicitConfig
from model.explicit import References, write
from model.explicit.cost import knowledge_costs, memory_bytes
from model.explicit.references import memory_shape
from training.distributed.devices import keep_freed_memory

PROMPT, TEXT, CHUNK, EACH, BANK = 128, 128, 64, 5, 256
SIZES = {  # hidden, layers, heads, key heads, feed-forward
    "small": (512, 8, 8, 4, 1024),
    "memory3": (3200, 44, 40, 8, 3200),
}


def model_of(size: str) -> LanguageModel:
    hidden, layers, heads, kv_heads, ffn = SIZES[size]
    config = ModelConfig(
        vocab_size=4096,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        ffn_size=ffn,
        segment_length=2048,
        explicit=ExplicitConfig(bos=(1, 2, 3)),
    )
    return build_model(config)


class Bank:
    """Memories of random references in a file, memory-mapped, and their texts."""

    @torch.no_grad()
    def __init__(self, net: LanguageModel, folder: Path, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(4, 4096, (BANK, 128), generator=generator)
        shape = (BANK, *memory_shape(net.config))
        file = np.memmap(folder / "bank", dtype=np.float32, mode="w+", shape=shape)
        for first in range(0, BANK, 32):
            own = self.tokens[first : first + 32].to(device)
            lengths = torch.full((len(own),), 128, device=device)
            file[first : first + 32] = write(net, own, lengths).float().cpu().numpy()
        file.flush()
        self.memories, self.device = file, device
        self.dtype = next(net.parameters()).dtype

    def read(self, batch: int, chunk: int) -> References:
        """Five references for one chunk of every stream."""
        ids = np.arange(batch * EACH).reshape(batch, EACH) * 7 + chunk * 11
        memories = torch.from_numpy(self.memories[ids % BANK]).to(self.device, self.dtype)
        lengths = torch.full(ids.shape, 128, device=self.device)
        return References(lengths, memories=memories, each=EACH)


@torch.no_grad()
def run(net: LanguageModel, prompt: Tensor, bank: Bank | None, timed: list[float] | None = None) -> None:
    """Prompt, then TEXT tokens; a chunk's references are there when its first token is read."""
    state: StreamState | None = None
    begins = 0.0
    step = CHUNK if bank else prompt.size(1)
    for chunk, part in enumerate(prompt.split(step, dim=1)):
        references = bank.read(len(prompt), chunk) if bank else None
        hidden, state = net.hidden(part, state=state, references=references)
    token = net.head.logits(hidden[:, -1]).argmax(dim=-1, keepdim=True)
    begins = time.perf_counter()
    for produced in range(TEXT - 1):
        opens = bank is not None and (prompt.size(1) + produced) % CHUNK == 0
        references = bank.read(len(prompt), 2 + produced // CHUNK) if bank and opens else None
        hidden, state = net.hidden(token, state=state, references=references)
        token = net.head.logits(hidden[:, -1]).argmax(dim=-1, keepdim=True)
    if prompt.device.type == "cuda":
        torch.cuda.synchronize()
    if timed is not None:
        timed.append(time.perf_counter() - begins)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    device, batch = torch.device(options.device), options.batch
    net = model_of(options.size).to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval()
    plain = LanguageModel(net.config, memory_on=False).to(device, next(net.parameters()).dtype).eval()
    plain.load_state_dict(net.state_dict())
    prompt = torch.randint(4, 4096, (batch, PROMPT), generator=torch.Generator().manual_seed(1)).to(device)
    with tempfile.TemporaryDirectory() as folder:
        bank = Bank(net, Path(folder), device)
        text = bank.tokens[: EACH * batch].view(batch, -1).to(device)
        with_text = torch.cat((text, prompt), dim=1)
        decoding: list[list[float]] = [[], [], []]
        contestants: list[Callable[[], object]] = [
            lambda: run(net, prompt, bank, decoding[0]),
            lambda: run(plain, prompt, None, decoding[1]),
            lambda: run(plain, with_text, None, decoding[2]),
        ]
        whole = interleaved_seconds(contestants, options.rounds)
    own = [sorted(times[1:])[len(times) // 2 - 1] for times in decoding]
    print(f"{options.size}: batch {batch}, {PROMPT} tokens in, {TEXT} out, {EACH} references every {CHUNK} tokens")
    print(f"a memory takes {memory_bytes(net.config, net.head.weight.element_size()):,.0f} bytes")
    for name, all_, decode in zip(("with memory", "without", "as text"), whole, own, strict=True):
        print(f"  {name:12s} {batch * TEXT / all_:8.1f} tokens/s, decoding alone {batch * (TEXT - 1) / decode:8.1f}")
    ratio, decoding_ratio = whole[1] / whole[0], own[1] / own[0]
    print_costs(net.config)
    claim("tokens/s with memory over without, prompt included", ratio, ">= 0.65", ratio >= 0.65)
    claim("the same, decoding alone", decoding_ratio, ">= 0.65", decoding_ratio >= 0.65)
    claim("tokens/s with memory over references as text", whole[2] / whole[0], "> 1", whole[2] > whole[0])


def print_costs(config: ModelConfig) -> None:
    """The paper's account of the same model."""
    costs = knowledge_costs(config)
    low, high = costs.crossover
    print(
        f"GFLOP of a reference: {costs.implicit_write / 1e9:.3g} to learn; {costs.explicit_write / 1e9:.3g} to write "
        f"and {costs.explicit_read / 1e9:.3g} to read as memory; {costs.rag_read / 1e9:.3g} to read as text: memory "
        f"costs least for {low:.3g} to {high:,.0f} uses"
    )


if __name__ == "__main__":
    keep_freed_memory()
    main()
