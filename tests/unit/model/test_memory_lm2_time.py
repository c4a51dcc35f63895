"""LM2's memory through time: the fast path is the equations, where a memory sits, and what it carries."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import LanguageModel, MemoryConfig, StreamState, build_model
from model.errors import ModelError
from model.memory.interface import memories
from tests.reference import lm2_time
from tests.reference.small import LM2, awake, random_ids, tiny
from tests.reference.small import one_thread as one_thread

SEVERAL = [[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3], [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2]]
ONE = [[0] * 16] * 2


def new_net(**changes) -> LanguageModel:
    return awake(build_model(tiny(**{"memory": LM2} | changes), seed=3), seed=4)


def gradients(net: LanguageModel, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*net.named_parameters(), strict=True)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def assert_equals_reference(net: LanguageModel, ids: Tensor, documents: Tensor | None) -> None:
    labels = random_ids(9, *ids.shape)
    fast, slow = net(ids, documents).logits, lm2_time.forward(net, ids, documents)
    torch.testing.assert_close(fast, slow.float(), atol=1e-5, rtol=0)
    expected = gradients(net, slow, labels)
    for name, gradient in gradients(net, fast, labels).items():
        assert expected[name].abs().max() > 1e-4, f"{name}: too small for the tolerance to mean anything"
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5, msg=f"{{}} {name}".format)


def tensors_of(state: StreamState) -> list[Tensor]:
    return [t for x in state.layers for t in (x.keys, x.values, x.memory.bank, x.memory.pending)]


@pytest.mark.parametrize("span", [1, 2, 3])
@pytest.mark.parametrize("length", [16, 14])
@pytest.mark.parametrize("layout", [None, ONE, SEVERAL])
def test_logits_and_gradients_equal_the_loops(span, length, layout):
    documents = None if layout is None else torch.tensor(layout)[:, :length]
    assert_equals_reference(new_net(attention_span=span), random_ids(1, 2, length), documents)


@pytest.mark.parametrize("memory", [{"slots": 2, "heads": 1}, {"slots": 7, "heads": 4}])
def test_slots_and_heads_are_free(memory):
    assert_equals_reference(new_net(memory=MemoryConfig(kind="lm2", **memory)), random_ids(1, 1, 13), None)


def test_tied_embeddings_equal_the_loops():
    assert_equals_reference(new_net(tie_embeddings=True), random_ids(1, 2, 9), torch.tensor(SEVERAL)[:, :9])


@pytest.mark.parametrize(
    ("layers", "hosts"), [("all", [0, 1, 2]), (1, [0]), (2, [0, 1]), ((2,), [2]), ([0, 2], [0, 2])]
)
def test_memory_layers_names_the_hosts(layers, hosts):
    net = new_net(num_layers=3, memory=MemoryConfig(kind="lm2", slots=3, heads=2, layers=layers))
    assert [i for i, layer in enumerate(net.layers) if layer.memory is not None] == hosts
    assert sorted({name.split(".memory.")[0] for name, _ in net.memory_parameters()}) == [f"layers.{i}" for i in hosts]
    assert_equals_reference(net, random_ids(1, 1, 10), None)


def test_memory_parameters_are_all_but_the_backbone():
    net = new_net()
    backbone = {name for name, _ in build_model(net.config, memory_on=False).named_parameters()}
    memory = dict(net.memory_parameters())
    assert backbone.isdisjoint(memory)
    assert backbone | memory.keys() == {name for name, _ in net.named_parameters()}
    assert all(parameter is memory[name] for name, parameter in net.named_parameters() if name in memory)


def test_flow_time_is_the_default():
    named, unnamed = (build_model(tiny(MemoryConfig(kind="lm2", flow=flow, heads=2))) for flow in ("time", None))
    ids = random_ids(1, 1, 9)
    assert torch.equal(awake(named)(ids).logits, awake(unnamed)(ids).logits)


def test_the_carried_state_does_not_grow():
    net, state, sizes = new_net(attention_span=2), None, []
    for call in range(40):
        state = net(random_ids(call, 2, 3), state=state).state
        if state.position % 4 == 3 and state.position > 4:  # the first segment has no segment before it
            sizes.append([tuple(t.shape) for t in tensors_of(state)])
    # keys and values [B, the segment before + 3, Hkv, d]; bank [B, H, N, d]; pending tokens [B, 3, D]
    assert sizes == [[(2, 7, 2, 4), (2, 7, 2, 4), (2, 2, 3, 8), (2, 3, 16)] * 2] * 9


def test_the_carried_state_is_fp32_and_holds_no_graph():
    tensors = tensors_of(new_net()(random_ids(1, 1, 11)).state)
    assert [t.dtype for t in tensors] == [torch.float32] * 8
    assert not any(t.requires_grad for t in tensors)


def test_recorded_gates_are_the_means_since_they_were_last_taken():
    net = new_net()
    memory: Any = memories(net)[0]
    torch.nn.init.zeros_(memory.gate_out.weight)
    for bias in (1.0, -3.0):
        torch.nn.init.constant_(memory.gate_out_bias, bias)
        net(random_ids(1, 2, 12))
    gates = memory.take_gates()
    assert gates.keys() == {"in", "forget", "out"}
    assert float(gates["out"]) == pytest.approx((torch.tensor([1.0, -3.0]).sigmoid().mean()).item())
    assert all(0 < float(mean) < 1 and not mean.requires_grad for mean in gates.values())
    assert memory.take_gates() == {}


def test_a_gate_that_training_does_not_report_is_refused():
    with pytest.raises(ModelError, match="'write' is a gate that training does not report; use in, forget, out"):
        memories(new_net())[0].record_gate("write", torch.ones(2))


def test_an_incomplete_segment_is_not_written():
    net = new_net()
    closed = net(random_ids(1, 1, 8)).state
    opened = net(torch.cat((random_ids(1, 1, 8), random_ids(2, 1, 3)), dim=1)).state
    assert (closed.position, opened.position) == (8, 11)
    for before, after in zip(closed.layers, opened.layers, strict=True):
        assert before.memory.bank.abs().max() > 0.1
        torch.testing.assert_close(before.memory.bank, after.memory.bank)
