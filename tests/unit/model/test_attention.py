"""Attention over sequences of different lengths against the masked one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import LanguageModel, build_model
from model.attention import Attention
from model.preparation import prepare
from model.sdpa import sdpa
from model.segments import SegmentSpan, sequences, spans
from tests.reference.small import DELTA, LM2, NONE, SEGMENT, awake, random_ids, tiny
from tests.reference.small import one_thread as one_thread
from tests.reference.varlen import kernels as kernels
from tests.reference.varlen import on_a_gpu as on_a_gpu

examples = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@st.composite
def drawn_spans(draw: st.DrawFn) -> tuple[list[SegmentSpan], Tensor]:
    """The spans of a call anywhere in a stream, packed or not, and the documents of cached and own tokens."""
    attention_span, start, length = draw(st.integers(1, 3)), draw(st.integers(0, 10)), draw(st.integers(1, 17))
    cached = min(start, start % SEGMENT + (attention_span - 1) * SEGMENT)
    changes = draw(st.lists(st.sampled_from([0, 0, 1]), min_size=2 * (cached + length), max_size=2 * (cached + length)))
    documents = torch.tensor(changes).view(2, -1).cumsum(dim=1)
    packed = draw(st.booleans())
    bank = torch.full((2,), -1) if packed else None
    return list(spans(start, length, SEGMENT, attention_span, documents if packed else None, bank)), documents


@examples
@given(drawn_spans(), st.integers(0, 99))
def test_sequences_are_the_mask(drawn: tuple[list[SegmentSpan], Tensor], seed: int) -> None:
    cut, documents = drawn
    config = tiny(attention_span=cut[0].attention_span)
    attention = Attention(config, build_model(config).parallel)
    for span in cut:
        generator = torch.Generator().manual_seed(seed)
        shapes = ((2, span.length, 4, 4), *[(2, span.cached + span.length, 2, 4)] * 2)
        inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        direction = torch.randn(2, span.length, 16, generator=generator)
        results = []
        for cuts in (None, sequences(span, documents)):
            out = attention.attend(inputs[0], inputs[1], inputs[2], replace(span, cuts=cuts))
            results.append((out, *torch.autograd.grad(out, inputs, direction)))
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@examples
@given(st.integers(1, 3), st.data())
def test_a_bound_on_the_changes_is_enough(attention_span: int, data: st.DataObject) -> None:
    changed = data.draw(st.lists(st.booleans(), min_size=32, max_size=32))
    documents = torch.tensor(changed).view(2, -1).cumsum(dim=1)
    (span,) = spans(0, 16, SEGMENT, attention_span, documents, torch.full((2,), -1))
    counted = sequences(span, documents)
    changes = int((documents.diff(dim=1) != 0).sum())
    known = sequences(span, documents, changes + data.draw(st.integers(0, 3)))
    for one, other in zip(counted, known, strict=True):
        assert torch.equal(one.unique(), other.unique()) and len(other) >= len(one)
        assert (other.diff() >= 0).all()


@pytest.mark.parametrize("attention_span", [1, 2])
@pytest.mark.parametrize("memory", [NONE, LM2, DELTA], ids=["none", "lm2", "delta"])
def test_a_model_on_sequences_is_the_same(
    memory: Any, attention_span: int, on_a_gpu: list[int], monkeypatch: Any
) -> None:
    net = awake(build_model(tiny(memory, attention_span=attention_span)))
    ids, documents = random_ids(0, 2, 16), (torch.arange(32).view(2, 16) % 7 == 0).cumsum(dim=1)
    results = []
    for changes in (None, 5):
        results.append(outcome(net, ids, documents, changes))
    assert len(on_a_gpu) == 2 * len(net.layers)
    monkeypatch.setattr("model.preparation.serves_varlen", lambda *_: False)
    expected = outcome(net, ids, documents, None)
    assert len(on_a_gpu) == 2 * len(net.layers), "a mask now"
    for found in results:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def outcome(net: LanguageModel, ids: Tensor, documents: Tensor, changes: int | None) -> list[Tensor]:
    net.zero_grad()
    hidden, _ = net.hidden(ids, documents, changes=changes)
    hidden.square().mean().backward()
    return [hidden, *(p.grad for p in net.parameters() if p.grad is not None)]


def test_generation_goes_over_sequences_too(on_a_gpu: list[int]) -> None:
    net = build_model(tiny(attention_span=2))
    ids = random_ids(0, 2, 14)
    with torch.no_grad():
        whole, state = net(ids).logits, None
        for begin, end in ((0, 5), (5, 6), (6, 14)):
            out = net(ids[:, begin:end], None, state)
            state = out.state
            torch.testing.assert_close(out.logits, whole[:, begin:end], atol=1e-5, rtol=1e-5)
    assert on_a_gpu


def test_a_mask_never_reaches_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's backward with a mask returns NaN for some lengths."""
    allowed: list[bool] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def watched(*arguments: Any, **more: Any) -> Tensor:
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return real(*arguments, **more)

    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    monkeypatch.setattr("model.sdpa.F.scaled_dot_product_attention", watched)
    q = torch.randn(1, 4, 3, 8)
    kv = torch.randn(1, 2, 3, 8)
    mask = torch.ones(3, 3, dtype=torch.bool).tril()
    masked, causal = sdpa(q, kv, kv, mask), sdpa(q, kv, kv, None)
    torch.testing.assert_close(masked, causal)
    assert allowed == [False, torch.backends.cuda.cudnn_sdp_enabled()]


def test_preparation_leaves_nothing_to_layers() -> None:
    documents = torch.zeros(2, 16, dtype=torch.int64)
    (span,) = spans(0, 16, SEGMENT, 1, documents, torch.full((2,), -1))
    (ready,) = prepare(tiny(), [span], documents, torch.bfloat16, masked=True, changes=None)
    assert ready.rotary is not None and ready.rotary.dtype == torch.bfloat16
    assert {"readable", "writable", "continues", "_masks"} <= vars(ready).keys() and ready._masks
