"""Delta, the published LM2 and RMT: the fast paths are the loops, in logits and in all gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import LanguageModel, MemoryConfig, build_model
from model.memory.interface import memories
from tests.reference import delta, lm2_depth, rmt
from tests.reference.small import DELTA, DEPTH, RMT, awake, random_ids, tiny
from tests.reference.small import one_thread as one_thread

LAYOUTS = {
    "no ids": None,
    "one": [[0] * 16] * 2,
    "several": [[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3], [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2]],
}
KINDS = {"delta": (DELTA, delta), "lm2-depth": (DEPTH, lm2_depth), "rmt": (RMT, rmt)}


def new_net(memory: MemoryConfig, **changes) -> LanguageModel:
    return awake(build_model(tiny(memory, **changes), seed=3), seed=4)


def gradients(net: LanguageModel, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*net.named_parameters(), strict=True)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("length", [16, 14])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_equal_the_loops(kind, layout, length):
    memory, reference = KINDS[kind]
    net, ids, labels = new_net(memory), random_ids(1, 2, length), random_ids(9, 2, length)
    documents = None if LAYOUTS[layout] is None else torch.tensor(LAYOUTS[layout])[:, :length]
    fast, slow = net(ids, documents).logits, reference.forward(net, ids, documents)
    torch.testing.assert_close(fast, slow.float(), atol=2e-5, rtol=0)  # logits of order 1
    expected = gradients(net, slow, labels)
    for name, gradient in gradients(net, fast, labels).items():
        assert expected[name].any(), f"{name}: no gradient to compare"
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=f"{{}} {name}".format)


def test_top_k_slots_equal_the_loops():
    net, ids = new_net(DEPTH.model_copy(update={"top_k": 2})), random_ids(1, 2, 12)
    torch.testing.assert_close(net(ids).logits, lm2_depth.forward(net, ids).float(), atol=2e-5, rtol=0)


def test_a_segment_of_several_chunks_equals_the_loop():
    net, ids = new_net(DELTA, segment_length=66, num_layers=1), random_ids(1, 1, 70)
    torch.testing.assert_close(net(ids).logits, delta.forward(net, ids).float(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("memory", [DEPTH, RMT], ids=["lm2-depth", "rmt"])
@pytest.mark.parametrize("horizon", [None, 1, 2])
def test_gradients_reach_back_bptt_segments(memory, horizon):
    """From the last of four segments, to the embeddings of the tokens of each segment."""
    net = new_net(memory.model_copy(update={"bptt_segments": horizon}))
    ids = torch.arange(16).unsqueeze(0)  # every token once: the embedding's rows tell the places apart
    net(ids).logits[:, 12:].square().sum().backward()
    reached = net.embedding.weight.grad[:16].abs().amax(dim=1).unflatten(0, (4, 4)).amax(dim=1) > 0
    # the memory is detached at every horizon-th boundary: segment 3 begins with a detached one for 1, segment 2 for 2
    assert reached.tolist() == {None: [True] * 4, 1: [False] * 3 + [True], 2: [False, False, True, True]}[horizon]


def test_sparse_writes_leave_delta_as_it_is_when_no_token_is_worth_writing():
    config = tiny(MemoryConfig(kind="delta", heads=2, sparse_writes=True))
    net = awake(build_model(config, seed=0), seed=1)
    with torch.no_grad():
        for memory in memories(net):
            memory.gate_in_bias.fill_(-30.0)
    state = net(random_ids(0, 2, 2 * config.segment_length)).state
    banks = [layer.memory.bank for layer in state.layers]
    assert all(bool((bank == 0).all()) for bank in banks)
    with torch.no_grad():
        for memory in memories(net):
            memory.gate_in_bias.fill_(30.0)
    written = net(random_ids(0, 2, 2 * config.segment_length)).state
    with torch.no_grad():
        for memory in memories(net):
            memory.gate_in_bias.fill_(-30.0)
    after = net(random_ids(1, 2, 8 * config.segment_length), state=written).state
    for before, now in zip(written.layers, after.layers, strict=True):
        assert float(before.memory.bank.abs().max()) > 0.01
        assert torch.equal(before.memory.bank, now.memory.bank)
