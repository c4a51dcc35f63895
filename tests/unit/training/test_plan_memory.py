"""What a plan says of memory against what really built models hold."""

import sys
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import Tensor

from model import MemoryConfig, ModelConfig, build_model
from model.config import ExplicitConfig
from model.cost import Role
from model.explicit import References
from model.loss import HeadLoss
from model.memory.registry import choices
from model.parallel import TensorParallel
from tests.reference.small import TESTED, one_thread
from training.planning.activations import Shape, head_kept, layer_kept

__all__ = ["one_thread"]

SIZES = {"lm2": {"slots": 8}, "delta": {"heads": 2}, "rmt": {"slots": 4}}
KINDS = {name: MemoryConfig(**kind.selects, **SIZES.get(name, {})) for name, kind in choices().items()}


EXPLICIT = ExplicitConfig(bos=(1, 2), layers="all", reference_length=64, chunk_length=32, tokens=4)


def small(memory: MemoryConfig, layers: int, explicit: ExplicitConfig | None = None) -> ModelConfig:
    return ModelConfig(
        vocab_size=4096,
        hidden_size=64,
        num_layers=layers,
        num_heads=8,
        num_kv_heads=4,
        ffn_size=160,
        segment_length=128,
        memory=memory,
        explicit=explicit,
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
    references = None
    if config.explicit:
        tokens = torch.randint(0, config.vocab_size, (batch, length // 32, 64))
        lengths = torch.full((batch, length // 32), 64)
        references = References(lengths, tokens, documents=torch.zeros_like(lengths), window=5)
    documents = (torch.arange(length) >= length // 3).long().repeat(batch, 1)
    # one product for gate and up, as on a GPU; on a CPU autograd also keeps copies of the separated weights
    one_product = mock.patch("model.parallel._SEPARATE_ROWS", sys.maxsize)
    with one_product, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        hidden, _ = net.hidden(ids, documents, references=references)
        loss = HeadLoss(TensorParallel())(hidden, net.head.weight, ids, torch.ones(batch, length))
    total = sum(x.untyped_storage().nbytes() for x in kept.values())
    del loss
    return total


@pytest.mark.parametrize("item", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", TESTED)
def test_activations_are_those_autograd_keeps(kind: str, item: torch.dtype) -> None:
    batch, length = 2, 128 if KINDS[kind].sequential else 256
    shape = Shape(small(KINDS[kind], 2), batch, length, 1, False, item.itemsize, fused_norms=False, memory_on=True)
    one, two = (saved_bytes(small(KINDS[kind], layers), item, batch, length) for layers in (1, 2))
    assert layer_kept(shape, Role(hosts=KINDS[kind].exists)).total == pytest.approx(two - one, rel=0.05)
    assert head_kept(shape) == pytest.approx(2 * one - two, rel=0.05)


@pytest.mark.memory3
@pytest.mark.parametrize("item", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("references", ["whole", "none"])
def test_activations_with_references_are_those_autograd_keeps(references: str, item: torch.dtype) -> None:
    """One block more that references pass through, and one more above the memory layers."""
    batch, length = 2, 256
    layers = "all" if references == "whole" else 1
    explicit = EXPLICIT.model_copy(update={"layers": layers})
    small_one, large = (small(KINDS["none"], n, explicit) for n in (2, 3))
    shape = Shape(large, batch, length, 1, False, item.itemsize, fused_norms=False, memory_on=True)
    role = Role(reads=references == "whole", references=references)  # type: ignore[arg-type]
    difference = saved_bytes(large, item, batch, length) - saved_bytes(small_one, item, batch, length)
    assert layer_kept(shape, role).total == pytest.approx(difference, rel=0.05)


def test_a_loss_of_several_blocks_keeps_the_weight_s_gradient_in_fp32() -> None:
    config, rows = small(KINDS["none"], 1), 100
    net, found = build_model(config).to(torch.bfloat16), []
    hidden = torch.randn(2, 128, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    ids, weights = torch.zeros(2, 128, dtype=torch.int64), torch.ones(2, 128)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: found.append(x) or x, lambda x: x):
        HeadLoss(TensorParallel(), block=rows * config.vocab_size)(hidden, net.head.weight, ids, weights)
    kept = sum(x.nbytes for x in found if x.shape == net.head.weight.shape)
    large = config.model_copy(update={"vocab_size": 2**20})  # on a CPU 64 rows of a block
    shape = Shape(large, 2, 128, 1, False, 2, fused_norms=False, memory_on=True)
    assert shape.loss_rows == 64
    assert kept == 4 * net.head.weight.numel()
    assert head_kept(shape) == pytest.approx(2 * head_kept(replace(shape, length=32)), rel=0.01)  # 1 block: bf16
