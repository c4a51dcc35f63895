"""Explicit memory: the slow reference, writing, streaming, causality, documents, what is refused."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import LanguageModel, ModelConfig, ModelError, build_model
from model.config import ExplicitConfig
from model.explicit import References, write
from model.explicit.references import memory_shape
from model.explicit.selection import received_attention, select
from tests.reference import explicit as slow
from tests.reference.small import DELTA, LM2, NONE, VOCAB, awake, random_ids, tiny
from tests.reference.small import one_thread as one_thread

pytestmark = pytest.mark.memory3
EXPLICIT = ExplicitConfig(bos=(1, 5, 6), reference_length=5, tokens=2, chunk_length=2, references=3)
VARIANTS = {
    "plain": (EXPLICIT, {}),
    "one head": (EXPLICIT.model_copy(update={"kv_heads": (1,)}), {}),
    "a list of layers": (EXPLICIT.model_copy(update={"layers": (0, 2)}), {"attention_span": 2}),
    "exp": (EXPLICIT.model_copy(update={"selection": "exp", "bos": (3,)}), {"num_kv_heads": 1}),
    "all layers": (EXPLICIT.model_copy(update={"layers": "all"}), {"tie_embeddings": True}),
}
KINDS = {"none": NONE, "lm2": LM2, "delta": DELTA}
LENGTH, CHUNKS, BATCH = 11, 6, 2

examples = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def net_of(variant: str = "plain", memory: str = "none", seed: int = 1, **changes) -> LanguageModel:
    explicit, shape = VARIANTS[variant]
    config = tiny(KINDS[memory], num_layers=3, explicit=explicit, **shape | changes)
    return awake(build_model(config, seed=seed), seed=2)


def some_references(seed: int, each: int = 1, window: int = 3, documents: Tensor | None = None) -> References:
    generator = torch.Generator().manual_seed(seed)
    shape = BATCH, CHUNKS * each
    tokens = torch.randint(VOCAB, (*shape, EXPLICIT.reference_length), generator=generator)
    lengths = torch.randint(EXPLICIT.reference_length + 1, shape, generator=generator)
    return References(lengths, tokens, documents=documents, each=each, window=window)


def as_lists(references: References, row: int) -> list[slow.ChunkReference]:
    assert references.tokens is not None
    chunk_references = []
    for m, length in enumerate(references.lengths[row].tolist()):
        document = None if references.documents is None else int(references.documents[row, m])
        chunk_references.append(
            slow.ChunkReference(references.tokens[row, m, :length].tolist(), m // references.each, document)
        )
    return chunk_references


def stored(net: LanguageModel, references: References) -> References:
    """The same, from a bank."""
    assert references.tokens is not None
    rows = zip(references.tokens, references.lengths, strict=True)
    return replace(references, tokens=None, memories=torch.stack([write(net, *row) for row in rows]))


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients_are_the_slow_references(variant):
    net, ids = net_of(variant), random_ids(3, BATCH, LENGTH)
    documents = torch.tensor([[0] * 5 + [1] * 6, [0] * LENGTH])
    document_ids = torch.tensor(
        [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 0]]
    )  # the second row's fourth is another document's
    references = some_references(4, documents=document_ids)
    logits = net(ids, documents, references=references).logits
    expected = torch.stack(
        [slow.forward(net, ids[b].tolist(), documents[b].tolist(), as_lists(references, b), 3)[0] for b in range(BATCH)]
    )
    torch.testing.assert_close(logits.double(), expected, atol=2e-4, rtol=0)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5)).double()
    names, parameters = zip(*net.named_parameters(), strict=True)
    fast = torch.autograd.grad((logits.double() * weights).sum(), parameters)
    loops = torch.autograd.grad((expected * weights).sum(), parameters)
    for name, a, b in zip(names, fast, loops, strict=True):
        assert distance(a, b) <= 1e-4 * max(1.0, float(b.abs().max())), name


def test_several_references_a_chunk_are_the_slow_references():
    net, ids, references = net_of(), random_ids(3, BATCH, LENGTH), some_references(6, each=2, window=1)
    logits = net(ids, references=references).logits
    for b in range(BATCH):
        expected, _ = slow.forward(net, ids[b].tolist(), [0] * LENGTH, as_lists(references, b), 1)
        torch.testing.assert_close(logits[b].double(), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_is_what_the_formula_says(variant):
    net, references = net_of(variant), some_references(7)
    config, heads = net.config, net.config.explicit.heads(net.config.num_kv_heads)
    written = write(net, references.tokens[0], references.lengths[0])
    assert tuple(written.shape[1:]) == memory_shape(config)
    _, kept = slow.forward(net, [0], [0], as_lists(references, 0), 3)
    for m, layers in enumerate(kept):
        count = min(int(references.lengths[0, m]), 2)
        for layer, entries in enumerate(layers):
            by_head = [entries[h * count : (h + 1) * count] for h in heads]
            for h, best in enumerate(by_head):
                got = written[m, layer, :, h]  # [2, k, d]
                for slot, entry in enumerate(best):
                    key = slow.rotate(config, entry.key, entry.place)
                    assert distance(got[0, slot], key) < 1e-4 and distance(got[1, slot], entry.value) < 1e-4
                assert not got[:, count:].any()


@pytest.mark.parametrize("kind", ["softmax", "exp"])
def test_eight_of_128_tokens_are_those_with_the_most_received_attention(kind):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 128, heads, 16, generator=generator) for heads in (10, 2))
    lengths = torch.tensor([128, 100])
    chosen = select(received_attention(q, k, lengths, kind), 8)
    for r, length in enumerate(lengths.tolist()):
        for kv_head in range(2):
            scores = torch.zeros(length, dtype=torch.float64)
            for head in range(5 * kv_head, 5 * kv_head + 5):
                products = q[r, :length, head].double() @ k[r, :length, kv_head].double().T / 4
                scores += (products.softmax(dim=1) if kind == "softmax" else products.exp()).sum(dim=0)
            assert set(chosen[r, kv_head].tolist()) == set(scores.topk(8).indices.tolist())
            assert chosen[r, kv_head].max() < length


def test_scores_that_would_overflow_are_still_ordered():
    k = torch.tensor([[[300.0, 0.0]], [[200.0, 0.0]], [[250.0, 0.0]]]).unsqueeze(0)
    scores = received_attention(k, k, torch.tensor([3]), "exp")
    assert scores.isfinite().all() and select(scores, 3).tolist() == [[[0, 2, 1]]]


def test_a_reference_of_the_2_4b_model_takes_450_560_bytes():
    config = ModelConfig(
        vocab_size=60416, hidden_size=3200, num_layers=44, num_heads=40, num_kv_heads=8, ffn_size=3200,
        segment_length=2048, explicit=ExplicitConfig(),
    )  # fmt: skip
    assert memory_shape(config) == (22, 2, 8, 8, 80)
    assert math.prod(memory_shape(config)) * torch.finfo(torch.bfloat16).bits // 8 == 450_560


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_bank_gives_the_same_as_writing_in_the_call(variant):
    net, ids, references = net_of(variant), random_ids(1, BATCH, LENGTH), some_references(2)
    here, bank = net(ids, references=references).logits, net(ids, references=stored(net, references)).logits
    assert distance(here, bank) < 1e-5


@examples
@given(
    st.sampled_from([(v, m) for v in VARIANTS for m in KINDS]),
    st.sets(st.integers(1, LENGTH - 1)),
    st.sampled_from([(1, 3), (2, 1)]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
@torch.no_grad()
def test_streaming_is_one_call(kinds, cuts, each_and_window, from_a_bank, packed, seed):
    net, ids = net_of(*kinds), random_ids(seed, BATCH, LENGTH)
    each, window = each_and_window
    documents = torch.tensor([[7] * 5 + [8] * 6, [7] * 9 + [9] * 2]) if packed else None
    document_ids = torch.randint(7, 10, (BATCH, CHUNKS * each), generator=torch.Generator().manual_seed(seed))
    references = some_references(seed, each, window, document_ids if packed else None)
    references = stored(net, references) if from_a_bank else references
    whole = net(ids, documents, references=references)
    state, parts = None, []
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), LENGTH], strict=True):
        first, last = -(-begin // 2), -(-end // 2)  # the chunks that begin in this call
        own = references.part(first, last - first, CHUNKS) if last > first else None
        out = net(ids[:, begin:end], documents[:, begin:end] if packed else None, state, own)
        state, _ = out.state, parts.append(out.logits)
    assert distance(torch.cat(parts, dim=1), whole.logits) < 1e-4


@torch.no_grad()
def test_only_the_own_documents_references_are_seen():
    net, ids = net_of(), random_ids(1, BATCH, LENGTH)
    documents = torch.tensor([[0] * 5 + [1] * 6] * BATCH)
    document_ids = torch.tensor([[0, 0, 0, 1, 1, 1]] * BATCH)
    references = some_references(3, documents=document_ids)
    others = some_references(4, documents=document_ids)
    mixed: dict[str, Any] = {
        name: torch.where((document_ids == 0).view(BATCH, CHUNKS, *[1] * (a.dim() - 2)), a, b)
        for name, a, b in [(n, getattr(references, n), getattr(others, n)) for n in ("tokens", "lengths")]
    }
    one = net(ids, documents, references=references).logits
    two = net(ids, documents, references=replace(references, **mixed)).logits
    assert torch.equal(one[:, :5], two[:, :5]) and not torch.equal(one[:, 6:], two[:, 6:])


@torch.no_grad()
def test_where_a_segment_lies_changes_nothing():
    """References lie before the segment, not at the stream's begin: far into a stream they are as near as ever."""
    net, ids, references = net_of(), random_ids(1, BATCH, 4), some_references(2, window=1)
    alone = net(ids, references=references.part(0, 2, CHUNKS)).logits
    before = random_ids(5, BATCH, 4 * 50)
    _, state = net.hidden(before, torch.zeros_like(before))
    later = net(ids, torch.ones_like(ids), state, references.part(0, 2, CHUNKS)).logits
    assert distance(alone, later) < 1e-4


@torch.no_grad()
def test_off_is_off_and_without_references_only_the_sink_is_new():
    config = tiny(num_layers=3, explicit=EXPLICIT)
    ids = random_ids(1, BATCH, LENGTH)
    plain = build_model(tiny(num_layers=3), seed=1)(ids).logits
    off, on = build_model(config, seed=1, memory_on=False), build_model(config, seed=1)
    assert [n for n, _ in off.named_parameters()] == [n for n, _ in on.named_parameters()]
    assert torch.equal(off(ids).logits, plain)
    references = some_references(1)
    nothing = replace(references, lengths=torch.zeros_like(references.lengths))
    sink = on(ids).logits
    assert distance(sink, plain) > 1e-3  # one more key in every softmax
    assert distance(on(ids, references=nothing).logits, sink) < 1e-5


def test_every_weight_below_the_last_memory_layer_learns_from_references():
    net, ids = net_of(), random_ids(1, BATCH, LENGTH)
    references = some_references(2)

    def gradients(given: References) -> dict[str, Tensor]:
        loss = net(ids, references=given).logits.square().mean()
        names, parameters = zip(*net.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))

    with_them = gradients(references)
    memories = stored(net, references).memories.detach()
    detached = gradients(replace(references, tokens=None, memories=memories))
    written_by = ("embedding.", "layers.0.", "layers.1.attention.qkv", "layers.1.attention_norm")
    for name, gradient in with_them.items():
        assert (distance(gradient, detached[name]) > 1e-6) == name.startswith(written_by), name


class Words:
    """Retrieval in small: the passage that shares the most of the rarer tokens with a chunk (BM25 without lengths)."""

    def __init__(self, seed: int) -> None:
        self.passages = random_ids(seed, 40, EXPLICIT.reference_length)
        present = torch.stack([torch.bincount(p, minlength=VOCAB) > 0 for p in self.passages]).double()
        self.weights = present * torch.log(1 + len(present) / (1 + present.sum(dim=0)))

    def find(self, ids: Tensor, causal: bool) -> References:
        """One reference a chunk; causal: what the chunk before it found."""
        chunks = torch.nn.functional.pad(ids, (0, -ids.size(1) % 2)).unflatten(1, (-1, 2))
        counts = torch.zeros(*chunks.shape[:2], VOCAB).scatter_add_(2, chunks, torch.ones(chunks.shape))
        best = (counts.double() @ self.weights.T).argmax(dim=-1)  # [B, U]
        tokens, lengths = self.passages[best], torch.full_like(best, EXPLICIT.reference_length)
        if causal:
            tokens, lengths = tokens.roll(1, dims=1), lengths.roll(1, dims=1)
            lengths[:, 0] = 0
        return References(lengths, tokens, window=EXPLICIT.references)


@torch.no_grad()
def test_no_logit_depends_on_later_tokens_retrieval_included():
    net, words = net_of(), Words(8)
    ids, leaks = random_ids(1, BATCH, 12), 0
    for begin in range(1, 12):
        future = torch.cat((ids[:, :begin], random_ids(begin, BATCH, 12 - begin)), dim=1)
        for causal in (True, False):
            now, then = (net(x, references=words.find(x, causal)).logits[:, :begin] for x in (ids, future))
            if causal:
                assert torch.equal(now, then)
            leaks += not causal and not torch.equal(now, then)
    assert leaks  # the published form does, which this test would show


WRONG = {
    "both": (lambda r: replace(r, memories=r.tokens), "either their tokens"),
    "too few": (lambda r: replace(r, lengths=r.lengths[:, :4], tokens=r.tokens[:, :4]), "4 bundles of 1 for the 6"),
    "wide": (lambda r: replace(r, tokens=r.tokens[..., :3]), "references.tokens: shape"),
    "foreign": (lambda r: replace(r, tokens=r.tokens + VOCAB), "model.vocab_size is 23"),
    "documents": (lambda r: replace(r, documents=r.lengths[:, :2]), "references.documents: shape"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_references_that_do_not_fit_are_refused(wrong):
    change, message = WRONG[wrong]
    with pytest.raises(ModelError, match=message):
        net_of()(random_ids(1, BATCH, LENGTH), references=change(some_references(1)))


def test_references_without_explicit_memory_and_without_bos_are_refused():
    ids, references = random_ids(1, BATCH, LENGTH), some_references(1)
    with pytest.raises(ModelError, match=r"has none: set model\.explicit"):
        build_model(tiny())(ids, references=references)
    with pytest.raises(ModelError, match=r"explicit.bos: empty"):
        build_model(tiny(explicit=EXPLICIT.model_copy(update={"bos": ()})))(ids)


REFUSED = {
    "chunk": ({"chunk_length": 3}, {}, "chunk_length 3 must divide segment_length 4"),
    "tokens": ({"tokens": 9}, {}, "explicit.tokens 9"),
    "layers": ({"layers": (0, 7)}, {}, r"names \[7\]"),
    "heads": ({"kv_heads": ()}, {}, "must name at least one"),
    "rmt": ({}, {"memory": {"kind": "rmt"}}, "one after the other"),
    "bos": ({"bos": (99,)}, {}, "not below vocab_size 23"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_do_not_fit_are_refused(case):
    explicit, shape, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        tiny(**{"memory": NONE, "explicit": EXPLICIT.model_dump() | explicit} | shape)


@torch.no_grad()
def test_bf16_is_close_to_fp32():
    net, ids, references = net_of(memory="lm2"), random_ids(1, BATCH, LENGTH), some_references(2)
    exact = net(ids, references=references).logits
    net = net.to(torch.bfloat16)
    out = net(ids, references=references)
    assert out.logits.dtype == torch.float32
    assert (out.logits - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert distance(net(ids, references=stored(net, references)).logits, out.logits) < 0.02
