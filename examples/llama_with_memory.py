"""Turn an existing Llama into a model with a memory.

    python examples/llama_with_memory.py                        a small new Llama from Transformers
    python examples/llama_with_memory.py --folder ../Llama-3.2-1B

The Llama's weights become the backbone. A fresh memory changes no logit, so the model starts at exactly the Llama's
loss; then only the memory's parameters are trained, on text longer than a segment.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model import LanguageModel, MemoryConfig, ModelConfig, build_model
from model.llama_config import from_llama


def load_llama(folder: Path | None) -> Any:
    """A `LlamaForCausalLM` in fp32: that of `folder`, or a small one with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if folder is not None:
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def with_memory(llama: Any, segment: int) -> LanguageModel:
    """The Llama as backbone of a model with an `lm2` memory in every block and attention over `segment` tokens."""
    fields = from_llama(llama.config.to_dict())
    config = ModelConfig(
        **fields, segment_length=segment, memory=MemoryConfig(kind="lm2", flow="time", slots=16, heads=4)
    )
    net = build_model(config, seed=0)
    net.load_hf(llama.state_dict())
    return net


def repeated(vocabulary: int, segment: int, generator: torch.Generator) -> Tensor:
    """Text int64 [8, 2 * segment] whose second segment repeats the first: only a memory can tell what follows."""
    return torch.randint(0, min(vocabulary, 32), (8, segment), generator=generator).repeat(1, 2)


def loss_of(net: LanguageModel, ids: Tensor, segment: int) -> Tensor:
    """Nats per token in the second segment."""
    logits = net(ids).logits[:, segment:-1]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, segment + 1 :].flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="Hugging Face folder of a Llama; default: a small new one")
    parser.add_argument("--segment", type=int, default=32, help="tokens that attention sees (default 32)")
    parser.add_argument("--steps", type=int, default=200, help="steps in which the memory is trained (default 200)")
    options = parser.parse_args()
    llama = load_llama(options.folder)
    net = with_memory(llama, options.segment)
    generator = torch.Generator().manual_seed(0)
    first = repeated(net.config.vocab_size, options.segment, generator)[:, : options.segment]
    with torch.no_grad():
        difference = (net(first).logits - llama(first).logits).abs().max().item()
    memory = [parameter for _, parameter in net.memory_parameters()]
    print(f"largest logit difference to the Llama: {difference:.1e}")
    print(f"memory: {sum(p.numel() for p in memory):,} of {sum(p.numel() for p in net.parameters()):,} parameters")

    net.requires_grad_(False)
    for parameter in memory:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(memory, lr=3e-3)
    for step in range(options.steps):
        loss = loss_of(net, repeated(net.config.vocab_size, options.segment, generator), options.segment)
        if step == 0:
            print(f"loss in the second segment before training: {loss.item():.3f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss in the second segment after {options.steps} steps of the memory alone: {loss.item():.3f}")


if __name__ == "__main__":
    main()
