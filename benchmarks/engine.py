"""The engine against a plain PyTorch loop, our Llama against Hugging Face's, and what the memory costs.

    make bench      (or: python benchmarks/engine.py)

Ratios of medians, all contestants in turns in one process, on the CPU's cores; fp32 unless bf16 is said.  fp32 products
take the library that a run would choose here; Hugging Face's linear layers take torch's, and in a contestant of its own
ours.  In bf16 both are torch's.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.claims import claim, interleaved_seconds
from model import LanguageModel, MemoryConfig, ModelConfig, build_model
from model.cost import flops_per_token
from model.linear import choose_library, linear
from training.batches import MicroBatch, StepBatch
from training.config import parse_config
from training.distributed.devices import keep_freed_memory
from training.distributed.topology import RankInfo, initialize
from training.engine import build_engine, decays
from training.engine.cpu_products import MARGIN, measure

BATCH, LENGTH = 4, 512
DOCUMENTS = (torch.arange(LENGTH) >= LENGTH // 3).long().repeat(BATCH, 1)  # two packed in each sample
MODEL = ModelConfig(
    vocab_size=4096,
    hidden_size=256,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
    ffn_size=1024,
    segment_length=LENGTH,
)
MEMORIES = {
    "lm2 time flow": MemoryConfig(kind="lm2", slots=32, heads=4),
    "delta": MemoryConfig(kind="delta", heads=4),
}
WITH_MEMORY = {k: MODEL.model_copy(update={"segment_length": 128, "memory": m}) for k, m in MEMORIES.items()}


def groups(net: LanguageModel) -> list[dict[str, object]]:
    """AdamW's groups, as the engine makes them."""
    named = list(net.named_parameters())
    return [
        {"params": [p for n, p in named if decays(n, p) == decay], "weight_decay": 0.1 * decay}
        for decay in (True, False)
    ]


class PlainLoop:
    """Forward, backward, clip, AdamW: what anybody would write."""

    def __init__(self, net: LanguageModel, packed: bool = False) -> None:
        self.net, self.optimizer = net, torch.optim.AdamW(groups(net), lr=1e-4)
        self.ids = torch.randint(0, MODEL.vocab_size, (BATCH, LENGTH + 1))
        self.documents = DOCUMENTS if packed else None

    def __call__(self) -> None:
        logits = self.net(self.ids[:, :-1], self.documents).logits
        loss = F.cross_entropy(logits.flatten(0, 1), self.ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class HuggingFaceLoop:
    """The same step on Hugging Face's Llama; our_products: its linear layers are computed by `model.linear`."""

    def __init__(self, our_products: bool = False, dtype: torch.dtype = torch.float32) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        self.net = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=MODEL.vocab_size,
                hidden_size=MODEL.hidden_size,
                num_hidden_layers=MODEL.num_layers,
                num_attention_heads=MODEL.num_heads,
                num_key_value_heads=MODEL.num_kv_heads,
                intermediate_size=MODEL.ffn_size,
                use_cache=False,
            )
        ).to(dtype)
        for layer in self.net.modules():
            if our_products and isinstance(layer, nn.Linear):
                layer.forward = partial(self._product, layer)  # type: ignore[method-assign]
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4)
        self.ids = torch.randint(0, MODEL.vocab_size, (BATCH, LENGTH + 1))

    @staticmethod
    def _product(layer: nn.Linear, x: Tensor) -> Tensor:
        return linear(x, layer.weight)

    def __call__(self) -> None:
        logits = self.net(self.ids[:, :-1]).logits.float()
        F.cross_entropy(logits.flatten(0, 1), self.ids[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class EngineStep:
    """The same step through our engine (DeepSpeed, ZeRO 1, one rank)."""

    def __init__(self) -> None:
        config = parse_config(
            {
                "run": {"name": "benchmark"},
                "data": {"path": "unused", "sequence_length": LENGTH},
                "model": MODEL.model_dump(),
                "phases": [
                    {
                        "name": "only",
                        "memory": False,
                        "tokens": 10**6,
                        "tokens_per_step": BATCH * LENGTH,
                        "lr": {"peak": 1e-4},
                    }
                ],
                "training": {"micro_batch_size": BATCH},
            }
        )
        self.engine = build_engine(config, config.phases[0], initialize(config, RankInfo(0, 1, 0)))
        ids = torch.randint(0, MODEL.vocab_size, (BATCH, LENGTH + 1))
        self.batch = StepBatch(
            [MicroBatch(ids[:, :-1], F.pad(DOCUMENTS, (1, 0), value=-1), ids[:, 1:], torch.ones(BATCH, LENGTH))]
        )

    def __call__(self) -> None:
        self.engine.train_step(self.batch, 1e-4)


def main() -> None:
    torch.manual_seed(0)
    keep_freed_memory()
    ratio = measure(1024, MODEL.hidden_size, 2 * MODEL.ffn_size)
    onednn = choose_library(ratio * MARGIN > 1)
    library = "oneDNN" if onednn else "the default BLAS"
    print(f"fp32 products: {library}; the default takes {ratio:.2f} of oneDNN's time")
    contestants: dict[str, Callable[[], object]] = {
        "plain loop, our Llama, packed documents": PlainLoop(build_model(MODEL), packed=True),
        "engine, our Llama, packed documents": EngineStep(),
        "plain loop, our Llama": PlainLoop(build_model(MODEL)),
        "plain loop, Hugging Face's Llama": HuggingFaceLoop(),
        "plain loop, Hugging Face's Llama, our products": HuggingFaceLoop(our_products=True),
        "plain loop, our Llama, bf16": PlainLoop(build_model(MODEL).bfloat16()),
        "plain loop, Hugging Face's Llama, bf16": HuggingFaceLoop(dtype=torch.bfloat16),
        "plain loop, segments of 128, no memory": PlainLoop(build_model(WITH_MEMORY["delta"], memory_on=False)),
    }
    for kind, model in WITH_MEMORY.items():
        contestants[f"plain loop, segments of 128, {kind}"] = PlainLoop(build_model(model))
    seconds = interleaved_seconds(list(contestants.values()))
    for name, value in zip(contestants, seconds, strict=True):
        print(f"{name:50s} {value * 1e3:8.1f} ms a step {BATCH * LENGTH / value:10,.0f} tokens/s")
    print(f"{torch.get_num_threads()} threads")
    packed, engine, plain, hugging_face, same_products, plain_bf16, hugging_face_bf16, off, *on = seconds
    claim("engine over a plain PyTorch loop", engine / packed, "<= 1.05", engine / packed <= 1.05)
    for what, ours, theirs in (
        ("fp32", plain, hugging_face),
        ("fp32, our products on both sides", plain, same_products),
        ("bf16", plain_bf16, hugging_face_bf16),
    ):
        claim(f"our Llama step over Hugging Face's, {what}", ours / theirs, "<= 0.90", ours / theirs <= 0.90)
    for (kind, config), value in zip(WITH_MEMORY.items(), on, strict=True):
        tax, flops = value / off, flops_per_token(config, True) / flops_per_token(config, False)
        print(f"FLOPs with {kind} / without: {flops:.2f}")
        claim(f"memory tax, {kind}, every block", tax, "<= 1.35", tax <= 1.35)
        claim(f"memory tax over the ratio of FLOPs, {kind}", tax / flops, "<= 1.10", tax / flops <= 1.10)


if __name__ == "__main__":
    main()
