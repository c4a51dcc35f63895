"""What every model must satisfy, with and without a memory: causal, isolated, streaming, no jump, used."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import LanguageModel, ModelError, StreamState, build_model
from model.cost import count_parameters
from model.memory.interface import ablated, memories
from tests.reference.small import KINDS, PAIRS, SEGMENT, TESTED, VOCAB, awake, random_ids, tiny
from tests.reference.small import one_thread as one_thread

MEMORIES = [kind for kind in TESTED if KINDS[kind].exists]
BATCH, LONGEST = 2, 21

examples = settings(max_examples=60, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**16)


@dataclass(frozen=True)
class Reading:
    """A model and what it reads: tokens and documents int64 [B, L]."""

    net: LanguageModel
    ids: Tensor
    documents: Tensor | None

    @property
    def length(self) -> int:
        return self.ids.size(1)


@lru_cache
def new_net(kind: str = "lm2", span: int = 1) -> LanguageModel:
    return awake(build_model(tiny(KINDS[kind], attention_span=span), seed=1), seed=2)


def layouts(length: int) -> st.SearchStrategy[Tensor]:
    """Document ids [B, length]: every row begins with document 0, and every new document has the next number."""
    begins = st.lists(st.sampled_from([0, 0, 0, 1]), min_size=length, max_size=length)
    rows = st.lists(begins, min_size=BATCH, max_size=BATCH)
    return rows.map(lambda drawn: torch.tensor([[0, *row[1:]] for row in drawn]).cumsum(dim=1))


@st.composite
def readings(draw: st.DrawFn, packed: bool | None = None) -> Reading:
    """Any kind, span and length, not only whole segments; `packed`: with documents, without, or either."""
    net = new_net(*draw(st.sampled_from(PAIRS)))
    ids = random_ids(draw(seeds), BATCH, draw(st.integers(2, LONGEST)))
    packed = draw(st.booleans()) if packed is None else packed
    return Reading(net, ids, draw(layouts(ids.size(1))) if packed else None)


def sizes_of(length: int) -> st.SearchStrategy[list[int]]:
    """Sizes of calls that together read `length` tokens."""
    inner = st.sets(st.integers(1, length - 1)) if length > 1 else st.just(set())
    return inner.map(lambda cuts: torch.tensor([0, *sorted(cuts), length]).diff().tolist())


@torch.no_grad()
def logits_of(net: LanguageModel, ids: Tensor, documents: Tensor | None = None) -> Tensor:
    return net(ids, documents).logits


@torch.no_grad()
def logits_in_parts(reading: Reading, sizes: list[int], documents_from: int = 0) -> Tensor:
    """Logits of calls of these sizes with the carried state; those before `documents_from` get no document ids."""
    state: StreamState | None = None
    parts = []
    for end, size in zip(torch.tensor(sizes).cumsum(dim=0).tolist(), sizes, strict=True):
        part = slice(end - size, end)
        with_documents = reading.documents is not None and part.start >= documents_from
        out = reading.net(reading.ids[:, part], reading.documents[:, part] if with_documents else None, state)
        state = out.state
        assert state.position == end
        parts.append(out.logits)
    return torch.cat(parts, dim=1)


def is_causal(reading: Reading, begin: int, future_ids: Tensor, future_documents: Tensor | None) -> bool:
    """Whether the logits before `begin` are the same to the last bit with another future from there on."""
    ids, documents = reading.ids.clone(), reading.documents
    ids[:, begin:] = future_ids[:, begin:]
    if documents is not None:
        documents = torch.cat((documents[:, :begin], future_documents[:, begin:]), dim=1)
    now, then = logits_of(reading.net, reading.ids, reading.documents), logits_of(reading.net, ids, documents)
    return torch.equal(now[:, :begin], then[:, :begin])


def is_isolated(reading: Reading, document: int, other_ids: Tensor) -> bool:
    """Whether the document's logits are the same to the last bit beside other documents of the same lengths."""
    own: Any = reading.documents == document
    now = logits_of(reading.net, reading.ids, reading.documents)
    then = logits_of(reading.net, reading.ids.where(own, other_ids), reading.documents)
    return torch.equal(now[own], then[own])


@contextmanager
def leaky_output_gate(net: LanguageModel) -> Iterator[None]:
    """Every gate of the read sees the mean over all tokens of the call, as in the code released with LM2."""

    def leaky(output: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda query, gate, *rest: output(query, gate + gate.mean(dim=(1, 2), keepdim=True), *rest)

    for memory in memories(net):
        memory._output = leaky(memory._output)  # type: ignore[assignment, arg-type]
    yield
    for memory in memories(net):
        del memory._output  # type: ignore[attr-defined]


@examples
@given(readings(), seeds, st.data())
def test_causal(reading, seed, data):
    begin = data.draw(st.integers(1, reading.length - 1))
    documents = None
    if reading.documents is not None:  # the other future is cut elsewhere; it goes on with the last document, or not
        layout, last = data.draw(layouts(reading.length)), reading.documents[:, begin - 1 : begin]
        documents = layout - layout[:, begin : begin + 1] + last + data.draw(st.integers(0, 1))
    assert is_causal(reading, begin, random_ids(seed, BATCH, reading.length), documents)


@examples
@given(readings(packed=True), st.data())
def test_causal_when_only_the_document_boundaries_differ(reading, data):
    begin = data.draw(st.integers(1, reading.length - 1))
    documents = data.draw(layouts(reading.length)) + reading.documents[:, begin - 1 : begin] + 1
    assert is_causal(reading, begin, reading.ids, documents)


@examples
@given(readings(packed=True), seeds, st.data())
def test_isolated(reading, seed, data):
    document = data.draw(st.sampled_from(reading.documents.unique().tolist()))
    assert is_isolated(reading, document, random_ids(seed, BATCH, reading.length))


@examples
@given(readings(packed=True), st.integers(1, 3), st.integers(0, 9), seeds)
def test_a_document_that_begins_with_a_segment_is_as_if_alone(reading, segments_before, length_after, seed):
    alone, past = reading.ids, segments_before * SEGMENT
    stream = torch.cat((random_ids(seed, BATCH, past), alone, random_ids(seed + 1, BATCH, length_after)), dim=1)
    before = reading.documents.repeat(1, past)[:, :past]  # documents of another reading, of any layout
    number = int(before.max()) + 1
    documents = torch.cat((before, torch.full_like(alone, number), torch.full((BATCH, length_after), number + 1)), 1)
    beside = logits_of(reading.net, stream, documents)[:, past : past + alone.size(1)]
    torch.testing.assert_close(beside, logits_of(reading.net, alone), atol=5e-5, rtol=0)  # logits of order 1


@pytest.mark.parametrize(("kind", "span"), PAIRS)
def test_an_id_that_comes_again_is_another_document(kind, span):
    ids = random_ids(1, BATCH, 12)
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]] * BATCH)
    other = torch.cat((random_ids(2, BATCH, 4), ids[:, 4:]), dim=1)
    net = new_net(kind, span)
    assert torch.equal(logits_of(net, ids, documents)[:, 6:], logits_of(net, other, documents)[:, 6:])


@examples
@given(readings(), st.data())
def test_streaming_in_arbitrary_parts(reading, data):
    sizes = data.draw(sizes_of(reading.length))
    whole = logits_of(reading.net, reading.ids, reading.documents)
    torch.testing.assert_close(logits_in_parts(reading, sizes), whole, atol=1e-5, rtol=0)


@examples
@given(readings())
def test_streaming_token_by_token(reading):
    whole = logits_of(reading.net, reading.ids, reading.documents)
    torch.testing.assert_close(logits_in_parts(reading, [1] * reading.length), whole, atol=1e-5, rtol=0)


@examples
@given(readings(packed=True), st.data())
def test_streaming_when_document_ids_come_late(reading, data):
    late = data.draw(st.integers(1, reading.length - 1))  # until then there is one document, number 0
    begins = reading.documents.diff(dim=1, prepend=torch.zeros(BATCH, 1, dtype=torch.int64))
    begins[:, :late] = 0
    reading = Reading(reading.net, reading.ids, begins.cumsum(dim=1))
    sizes = data.draw(sizes_of(late)) + data.draw(sizes_of(reading.length - late))
    whole = logits_of(reading.net, reading.ids, reading.documents)
    torch.testing.assert_close(logits_in_parts(reading, sizes, late), whole, atol=1e-5, rtol=0)


@examples
@given(readings())
def test_one_document_with_and_without_ids(reading):
    given_ids = logits_of(reading.net, reading.ids, torch.full_like(reading.ids, 7))
    torch.testing.assert_close(given_ids, logits_of(reading.net, reading.ids), atol=1e-5, rtol=0)


@examples
@given(readings())
def test_rows_of_a_batch_do_not_meet(reading):
    whole = logits_of(reading.net, reading.ids, reading.documents)
    for row in range(BATCH):
        documents = None if reading.documents is None else reading.documents[row : row + 1]
        alone = logits_of(reading.net, reading.ids[row : row + 1], documents)
        torch.testing.assert_close(whole[row : row + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("documents", [None, torch.tensor([[0] * 4 + [1] * 12] * BATCH)])
def test_the_checks_see_a_leaky_gate(documents):
    reading, other = Reading(new_net(), random_ids(1, BATCH, 16), documents), random_ids(2, BATCH, 16)
    with leaky_output_gate(reading.net):
        assert not is_causal(reading, 15, other, documents)
        assert documents is None or not is_isolated(reading, 1, other)
    assert is_causal(reading, 15, other, documents)
    assert documents is None or is_isolated(reading, 1, other)


@pytest.mark.parametrize(("kind", "span"), PAIRS)
def test_only_the_memory_reaches_further_than_the_attention(kind, span):
    past, recent = random_ids(1, BATCH, SEGMENT), random_ids(2, BATCH, (2 * span + 1) * SEGMENT)
    far = slice(2 * span * SEGMENT, None)  # two layers of attention see (span - 1) segments back each
    reached = kind != "none"
    net = new_net(kind, span)
    now = logits_of(net, torch.cat((past, recent), dim=1))[:, far]
    then = logits_of(net, torch.cat((past.flip(1), recent), dim=1))[:, far]
    assert bool((now - then).abs().max() > 1e-5) == reached
    assert torch.equal(now, then) != reached


@settings(examples, max_examples=15)
@given(st.sampled_from([pair for pair in PAIRS if KINDS[pair[0]].exists]), seeds, st.integers(1, LONGEST), st.data())
def test_nothing_jumps_when_the_memory_is_switched_on(pair, seed, length, data):
    kind, span = pair
    config = tiny(KINDS[kind], attention_span=span)
    off, on = (build_model(config, seed=seed, memory_on=memory_on) for memory_on in (False, True))
    ids, documents = random_ids(seed, BATCH, length), data.draw(st.none() | layouts(length))
    assert len(memories(on)) == 2
    # one segment after the other is another shape of matrix product, and rmt's softmax another order of sums
    tolerance = 1e-5 if config.memory.sequential else 0.0
    without, with_memory = logits_of(off, ids, documents), logits_of(on, ids, documents)
    torch.testing.assert_close(without, with_memory, atol=tolerance, rtol=0)
    sizes = data.draw(sizes_of(length))
    without, with_memory = (logits_in_parts(Reading(net, ids, documents), sizes) for net in (off, on))
    torch.testing.assert_close(without, with_memory, atol=tolerance, rtol=0)


def trained_a_little(kind: str) -> LanguageModel:
    net = build_model(tiny(KINDS[kind]), seed=1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for step in range(4):
        optimizer.zero_grad()
        loss_on(net, random_ids(step, BATCH, 16)).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net


def loss_on(net: LanguageModel, ids: Tensor) -> Tensor:
    return F.cross_entropy(net(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("kind", MEMORIES)
def test_gradients_reach_every_memory_parameter(kind):
    net = trained_a_little(kind)
    loss_on(net, random_ids(9, BATCH, 16)).backward()
    parameters = net.memory_parameters()
    assert sum(parameter.numel() for _, parameter in parameters) == count_parameters(net.config).memory > 0
    for name, parameter in parameters:
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", MEMORIES)
def test_the_first_step_opens_the_closed_output(kind):
    net = build_model(tiny(KINDS[kind]), seed=1)
    loss_on(net, random_ids(9, BATCH, 16)).backward()
    # a factor of zero that a softmax divides out again leaves rounding errors, not a gradient
    reached = {name for name, parameter in net.memory_parameters() if parameter.grad.abs().max() > 1e-7}
    closed = {"lm2-depth": "scale", "rmt": "open"}.get(kind, "out.weight")
    assert reached == {f"layers.{i}.memory.{closed}" for i in range(2)}


@pytest.mark.parametrize("kind", MEMORIES)
def test_ablating_the_memory_changes_what_follows_the_first_segment(kind):
    net, ids = new_net(kind), random_ids(9, BATCH, 16)
    remembering = logits_of(net, ids)
    with ablated(net):
        forgetful = logits_of(net, ids)
    assert torch.equal(remembering[:, :SEGMENT], forgetful[:, :SEGMENT])
    assert (remembering - forgetful)[:, SEGMENT:].abs().amax(dim=-1).min() > 1e-5
    assert torch.equal(logits_of(net, ids), remembering)


@pytest.mark.parametrize("kind", [kind for kind in MEMORIES if not KINDS[kind].sequential])
def test_an_ablated_memory_is_no_memory(kind):
    net, ids = new_net(kind), random_ids(9, BATCH, 16)
    plain = build_model(net.config, seed=1, memory_on=False)
    with ablated(net):
        assert torch.equal(logits_of(net, ids), logits_of(plain, ids))


def test_an_ablation_ends_with_an_error_too():
    net = new_net()
    with pytest.raises(RuntimeError), ablated(net):
        raise RuntimeError
    assert not any(memory.ablated for memory in memories(net))


@pytest.mark.parametrize(
    ("batch", "changes", "said"),
    [
        (3, {}, ["batch size", "2", "3"]),
        (BATCH, {"segment_length": 8}, ["segment_length", "4", "8"]),
        (BATCH, {"num_layers": 5}, ["layers", "2", "5"]),
    ],
)
@pytest.mark.parametrize("kind", TESTED)
def test_a_state_of_another_batch_or_model_is_refused(kind, batch, changes, said):
    state = new_net(kind)(random_ids(1, BATCH, 6)).state
    other = build_model(tiny(KINDS[kind], **changes))
    with pytest.raises(ModelError) as error:
        other(random_ids(1, batch, 1), state=state)
    assert all(words in str(error.value) for words in said), str(error.value)


def bytes_in(value: object) -> int:
    """Bytes of all tensors that a state holds."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    parts = value if isinstance(value, tuple) else vars(value).values() if is_dataclass(value) else ()
    return sum(bytes_in(part) for part in parts)


@pytest.mark.parametrize(("kind", "span"), PAIRS)
def test_the_state_does_not_grow_with_the_text(kind, span):
    net = new_net(kind, span)
    early = net(random_ids(1, BATCH, 3 * SEGMENT + 1)).state
    late = net(random_ids(1, BATCH, 40 * SEGMENT), state=early).state
    assert bytes_in(early) == bytes_in(late) > 0
    assert late.position == 43 * SEGMENT + 1


@pytest.mark.parametrize("kind", TESTED)
def test_a_call_does_not_change_the_state_it_was_given(kind):
    net, ids = new_net(kind), random_ids(1, BATCH, 16)
    state = net(ids[:, :6]).state
    first, second = (net(ids[:, 6:], state=state).logits for _ in range(2))
    assert torch.equal(first, second)


def test_logits_are_fp32_over_the_vocabulary():
    logits = new_net()(random_ids(1, BATCH, 6)).logits
    assert logits.shape == (BATCH, 6, VOCAB)
    assert logits.dtype == torch.float32
