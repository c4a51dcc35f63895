"""Every kind of model on a device that is not there: a tensor left on the CPU is found on any machine.

Fake tensors have a device and a shape but no numbers, and raise where devices meet.  Nor can a number be read from one:
what would wait for a GPU in the middle of a step raises as well.  The device is called "meta", for a torch built
without CUDA cannot fake a GPU, and it is made to take the branches of one.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model import LanguageModel
from model.config import ExplicitConfig
from model.explicit import References, write
from model.memory.interface import ablated
from model.rope import _table
from model.stages import flat_layers
from tests.reference.small import KINDS, tiny
from training.batches import MicroBatch
from training.engine import LossModel
from training.faults.anomalies import LossGuard

DEVICE = torch.device("meta")
EXPLICIT = ExplicitConfig(bos=(1, 5, 6), reference_length=5, tokens=2, chunk_length=2, references=3)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No table of real angles comes in, no fake one gets out."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda x: x.device == DEVICE))
    _table.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):  # torch.tensor(…, device="meta") gives no fake one
        yield
    _table.cache_clear()


def moved(module: nn.Module) -> None:
    """`module.to(DEVICE, torch.bfloat16)`, which fake parameters refuse."""
    there: dict[int, nn.Parameter] = {}
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            new = nn.Parameter(torch.empty_like(parameter, device=DEVICE, dtype=torch.bfloat16))
            child._parameters[name] = there.setdefault(id(parameter), new)


def net_of(kind: str, **changes) -> LanguageModel:
    net = LanguageModel(tiny(KINDS[kind], **{"num_layers": 1} | changes))
    moved(net)
    return net


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64, device=DEVICE)


def micro_batch(length: int, references: bool = False) -> MicroBatch:
    """As the loader hands it over, then moved."""
    ids, chunks = torch.zeros(2, length, dtype=torch.int64), length // EXPLICIT.chunk_length
    shapes = ((2, chunks, EXPLICIT.reference_length), (2, chunks), (2, chunks)) if references else ()
    explicit: Any = [ids.new_zeros(shape) for shape in shapes]
    return MicroBatch(ids, ids.new_zeros(2, length + 1), ids, torch.zeros(2, length), *explicit).to(DEVICE)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_in_parts(kind: str, packed: bool) -> None:
    net, state = net_of(kind), None
    for length in (14, 1):
        out = net(zeros(2, length), zeros(2, length) if packed else None, state)
        state = out.state.select(zeros(2))
        assert out.logits.device == DEVICE
    with ablated(net, [0]):
        assert net(zeros(2, 8)).logits.device == DEVICE


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_micro_batch(kind: str) -> None:
    span = 1 if KINDS[kind].sequential else 2
    net = net_of(kind, attention_span=span)
    LossModel(net, LossGuard())(micro_batch(16)).backward()
    assert all(p.grad is not None and p.grad.device == DEVICE for p in net.parameters())


@pytest.mark.parametrize("kind", ["none", "lm2", "delta"])
@pytest.mark.parametrize("span", [1, 2])
def test_attention_over_sequences_reads_no_number(kind: str, span: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.preparation.serves_varlen", lambda *_: True)
    net = net_of(kind, attention_span=span)
    LossModel(net, LossGuard())(replace(micro_batch(16), changes=3)).backward()
    assert net(zeros(2, 14)).logits.device == DEVICE
    with pytest.raises(RuntimeError):  # the documents must be counted
        net(zeros(2, 14), zeros(2, 14))


@pytest.mark.parametrize(("kind", "heads"), [("none", "all"), ("lm2", (0,))])
def test_explicit_memory(kind: str, heads: str | tuple[int, ...]) -> None:
    explicit = EXPLICIT.model_copy(update={"kv_heads": heads})
    net = net_of(kind, explicit=explicit, num_layers=2)
    LossModel(net, LossGuard())(micro_batch(16, references=True)).backward()
    assert all(p.grad is not None and p.grad.device == DEVICE for p in net.parameters())
    memories = write(net, zeros(12, EXPLICIT.reference_length), zeros(12)).unflatten(0, (2, 6))
    found = References(zeros(2, 6), memories=memories, documents=zeros(2, 6), window=3)
    out = net(zeros(2, 11), zeros(2, 11), references=found)
    after = net(zeros(2, 1), None, out.state)
    assert {memories.device, out.logits.device, after.logits.device} == {DEVICE}


@pytest.mark.parametrize("kind", ["lm2", "lm2-depth"])
def test_the_stages_of_a_pipeline(kind: str) -> None:
    config = tiny(KINDS[kind], num_layers=1)
    parts: tuple[Tensor, ...] | Tensor = micro_batch(config.segment_length).pipeline_item[0]
    net = LanguageModel(config)  # for its parallel context
    for layer in flat_layers(config, net.parallel, memory_on=True):
        stage = layer.type(*layer.arguments)
        moved(stage)
        parts = stage(parts)
    assert {part.device for part in parts} == {DEVICE}  # what the loss takes


def test_a_tensor_left_on_the_cpu_is_found() -> None:
    net = net_of("none")
    net.final_norm.weight = nn.Parameter(torch.ones(16))
    with pytest.raises(RuntimeError, match="device"):
        net(zeros(1, 4))
