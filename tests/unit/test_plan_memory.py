"""What a plan says of memory against what really built models hold."""

import pytest
import torch
from torch import Tensor

from model import MemoryConfig, ModelConfig, build_model
from model.parallel import TensorParallel, vocab_parallel_cross_entropy
from tests.reference.small import one_thread
from training.planning.activations import Shape, head_kept, layer_kept

__all__ = ["one_thread"]

KINDS = {
    "none": MemoryConfig(),
    "lm2": MemoryConfig(kind="lm2", slots=8, heads=4),
    "delta": MemoryConfig(kind="delta", heads=2),
    "lm2-depth": MemoryConfig(kind="lm2", flow="depth", heads=4),
    "rmt": MemoryConfig(kind="rmt", slots=4),
}


def small(memory: MemoryConfig, layers: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=512,
        hidden_size=64,
        num_layers=layers,
        num_heads=8,
        num_kv_heads=4,
        ffn_size=160,
        segment_length=128,
        memory=memory,
    )


def saved_bytes(config: ModelConfig, item: torch.dtype, batch: int, length: int) -> int:
    """Bytes autograd keeps for the backward of a loss on packed documents, each storage once, weights left out."""
    net = build_model(config).to(item)
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    ids = torch.randint(0, config.vocab_size, (batch, length))
    documents = (torch.arange(length) >= length // 3).long().repeat(batch, 1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        hidden, _ = net.hidden(ids, documents)
        loss = vocab_parallel_cross_entropy(net.head.logits(hidden), ids, TensorParallel()).sum()
    total = sum(x.untyped_storage().nbytes() for x in kept.values())
    del loss
    return total


@pytest.mark.parametrize("item", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_those_autograd_keeps(kind: str, item: torch.dtype) -> None:
    batch, length = 2, 256 if kind not in ("lm2-depth", "rmt") else 128
    shape = Shape(small(KINDS[kind], 2), True, batch, length, 1, False, item.itemsize, fused_norms=False)
    one, two = (saved_bytes(small(KINDS[kind], layers), item, batch, length) for layers in (1, 2))
    assert layer_kept(shape, hosts=kind != "none").total == pytest.approx(two - one, rel=0.05)
    assert head_kept(shape) == pytest.approx(2 * one - two, rel=0.05)
