"""What an interpretation says is what the model computed."""

import json
import re

import pytest
import torch
from torch import Tensor

from evaluation.interpret import analyse, load_analysis, save_analysis
from evaluation.interpret.analysis import Size
from evaluation.interpret.page import section
from evaluation.interpret.reading import Reading, read
from evaluation.interpret.retrieval import retrieved
from model import LanguageModel, MemoryConfig, ModelError, build_model
from model.memory.interface import ablated, memories, recording
from tests.reference.small import DELTA, KINDS, LM2, NONE, RMT, SEGMENT, awake, random_ids, tiny
from tests.reference.small import one_thread as one_thread

WITH_MEMORY = {name: memory for name, memory in KINDS.items() if name != "none"}
THROUGH_TIME = {"lm2": LM2, "delta": DELTA}
LENGTH = 5 * SEGMENT + 3


def new_net(memory: MemoryConfig, **changes) -> LanguageModel:
    return awake(build_model(tiny(memory, **changes), seed=3), seed=4).eval()


def prompt(length: int = LENGTH) -> list[int]:
    return random_ids(1, 1, length)[0].tolist()


def analysis_of(net: LanguageModel, ids: list[int]):
    return analyse(
        net,
        ids,
        lambda i: f"<{i}>",
        prompt_tokens=len(ids),
        run="tiny",
        checkpoint="here",
        command="c",
        size=Size(8, 3, 4, 2),
    )


@pytest.mark.parametrize("kind", WITH_MEMORY)
def test_recording_changes_nothing_and_leaves_nothing(kind):
    net, ids = new_net(WITH_MEMORY[kind]), random_ids(1, 2, LENGTH)
    plain = net(ids).logits
    with recording(net) as tapes:
        recorded = net(ids).logits
    assert torch.equal(plain, recorded) and all(tapes)
    taken = [{name: len(x) for name, x in tape.items()} for tape in tapes]
    net(ids)
    assert all(m.tape is None for m in memories(net))
    assert taken == [{name: len(x) for name, x in tape.items()} for tape in tapes]


@pytest.mark.parametrize("kind", ["lm2", "delta", "lm2-depth"])
@pytest.mark.parametrize("length", [SEGMENT + 2, 4 * SEGMENT, LENGTH])
def test_the_reads_are_the_models(kind, length):
    net = new_net(WITH_MEMORY[kind])
    readings, logits = read(net, prompt(length))
    torch.testing.assert_close(logits, net(torch.tensor([prompt(length)])).logits[0])
    for reading in readings:
        assert reading.address.size(0) == reading.recalled.size(0) == length
        assert reading.recalled[SEGMENT:].abs().max() > 1e-2
        assert reading.error < 1e-5


@pytest.mark.parametrize("top_k", [None, 2])
def test_lm2_depth_with_few_slots_a_token(top_k):
    net = new_net(MemoryConfig(kind="lm2", flow="depth", heads=2, top_k=top_k))
    for reading in read(net, prompt())[0]:
        assert reading.error < 1e-5
        assert (reading.address > 0).sum(dim=-1).max() == (top_k or SEGMENT)


@pytest.mark.parametrize("kind", THROUGH_TIME)
@pytest.mark.parametrize("length", [3 * SEGMENT, LENGTH])
def test_a_read_is_the_sum_of_what_it_retrieved(kind, length):
    """Every token's read from its retrieved tokens alone, against the fast path's."""
    net = new_net(THROUGH_TIME[kind])
    for reading in read(net, prompt(length))[0]:
        for t in range(length):
            torch.testing.assert_close(rebuilt(reading, t), reading.recalled[t], atol=1e-5, rtol=0)


def rebuilt(reading: Reading, t: int) -> Tensor:
    before = {name: x[: t // SEGMENT * SEGMENT] for name, x in reading.writes.items()}
    weights = retrieved(reading.address[t : t + 1], before)[0]  # [H, U]
    return torch.einsum("hu,uhd->hd", weights, before["content"])


def test_retrieved_tokens_over_many_segments_of_many_chunks():
    """Chunks of the delta rule within a segment, and hundreds of writes."""
    net = new_net(DELTA, segment_length=160)
    ids = random_ids(2, 1, 3 * 160 + 5)[0].tolist()
    for reading in read(net, ids)[0]:
        before = {name: x[: 3 * 160] for name, x in reading.writes.items()}
        weights = retrieved(reading.address[3 * 160 :], before)
        found = torch.einsum("rhu,uhd->rhd", weights, before["content"])
        torch.testing.assert_close(found, reading.recalled[3 * 160 :], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", WITH_MEMORY)
def test_token_by_token_reads_the_same(kind):
    """What is said of a prompt read at once holds for generation, one token a call."""
    net, ids = new_net(WITH_MEMORY[kind]), prompt()
    whole, _ = read(net, ids)
    state = None
    with recording(net) as tapes:
        for token in ids:
            state = net(torch.tensor([[token]]), state=state).state
    if kind == "rmt":
        assert len(tapes[0]["weights"]) == LENGTH
        return
    for reading, tape in zip(whole, tapes, strict=True):
        found = torch.stack([x.reshape(reading.recalled.shape[1:]) for x in tape["recalled"]])
        torch.testing.assert_close(found, reading.recalled, atol=1e-5, rtol=1e-4)


def test_rmt_gives_memory_what_its_softmax_leaves():
    net = new_net(RMT)
    for reading in read(net, prompt())[0]:
        assert reading.address.shape == (LENGTH, 4, 3)
        assert reading.address.min() >= 0 and 0.01 < reading.address.sum(dim=-1).max() <= 1 + 1e-6


@pytest.mark.parametrize("kind", WITH_MEMORY)
def test_ablating_every_slot_is_ablating_the_memory_and_one_is_less(kind):
    net, ids = new_net(WITH_MEMORY[kind]), random_ids(1, 2, LENGTH)
    slots = range(net.config.num_slots if kind != "delta" else 8)
    with ablated(net):
        without = net(ids).logits
    with ablated(net, list(slots)):
        torch.testing.assert_close(net(ids).logits, without)
    with ablated(net, [1]):
        one = net(ids).logits
    assert not torch.equal(one, without) and not torch.equal(one, net(ids).logits)
    with ablated(net, []):
        assert torch.equal(net(ids).logits, net(ids).logits)
    assert not any(m.ablated or m.ablated_slots for m in memories(net))


def test_a_slot_that_answers_to_one_token_is_found():
    """Keys and queries made so that slot 2 of block 0 answers to token 7 alone."""
    net, ids = new_net(LM2), prompt()
    ids = [i if i != 7 else 8 for i in ids]
    ids[SEGMENT + 1] = ids[3 * SEGMENT] = 7
    memory = memories(net)[0]
    tokens = _tokens_of(net, ids)
    mark = tokens[SEGMENT + 1] / tokens[SEGMENT + 1].norm()
    with torch.no_grad():
        for part in (memory.query.weight, memory.key.weight):
            rows = part.view(2, 3, -1)
            rows[:, 2] = 12 * mark
            rows[:, :2] *= 0.1
    layer = analysis_of(net, ids).layers[0]
    answer = next(a for a in layer["answers"] if a["slot"] == 2)
    assert answer["readers"][0]["position"] in (SEGMENT + 1, 3 * SEGMENT)


def _tokens_of(net: LanguageModel, ids: list[int]) -> Tensor:
    """Normalised tokens [L, D] as the first block's memory sees them."""
    found: list[Tensor] = []
    handle = net.layers[0].mlp_norm.register_forward_hook(lambda _, __, out: found.append(out.detach()[0]))
    net(torch.tensor([ids]))
    handle.remove()
    return found[0]


@pytest.mark.parametrize("kind", WITH_MEMORY)
def test_the_file_and_the_page(kind, tmp_path):
    net, ids = new_net(WITH_MEMORY[kind]), prompt()
    analysis = analysis_of(net, ids)
    again = load_analysis(save_analysis(analysis, tmp_path))
    assert again == analysis
    assert [layer["layer"] for layer in analysis.layers] == [0, 1]
    losses = torch.nn.functional.cross_entropy(
        net(torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]), reduction="none"
    ).detach()
    torch.testing.assert_close(torch.tensor(analysis.loss), losses, atol=2e-5, rtol=0)
    base, whole = analysis.ablated[:2]
    assert base["loss"] == pytest.approx(float(losses[SEGMENT:].mean()), abs=1e-4)
    assert abs(whole["loss"] - base["loss"]) > 0.02
    for layer in analysis.layers:
        for heatmap in layer["heatmaps"].values():
            values = torch.tensor(heatmap["values"])
            assert values.shape == (len(heatmap["positions"]), 3) and 0 <= values.min() <= values.max() <= 1.001
    html = section(analysis, "tiny")
    assert re.search(r"&lt;\d+&gt;", html) and not re.search(r"<\d+>", html), "tokens are text, not markup"
    assert ("got back" in html) == (kind in THROUGH_TIME)


def test_what_cannot_be_interpreted_is_refused():
    with pytest.raises(ModelError, match=r"memory.kind: none.*no memory"):
        analysis_of(new_net(NONE), prompt())
    with pytest.raises(ModelError, match=rf"prompt: {SEGMENT} tokens.*at least {SEGMENT + 2}"):
        analysis_of(new_net(DELTA), prompt(SEGMENT))


def test_a_file_of_an_earlier_version_is_read(tmp_path):
    analysis = analysis_of(new_net(DELTA), prompt())
    path = save_analysis(analysis, tmp_path)
    old = json.loads(path.read_text())
    old["wiped"] = old.pop("ablated")
    path.write_text(json.dumps(old))
    assert load_analysis(path) == analysis


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "interpretation.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(ModelError, match=r"interpretation.json.*launchers/interpret.py"):
        load_analysis(tmp_path / "interpretation.json")
