"""Generated text: the one the model predicts, drawn from the tokens asked for, the same for the same seed."""

import pytest
import torch
from torch import Tensor

from model import LanguageModel, ModelError, build_model, generation
from model.generation import Sampling, generate, prefill
from tests.reference.small import KINDS, PAIRS, VOCAB, awake, random_ids, tiny
from tests.reference.small import one_thread as one_thread

GREEDY = Sampling(temperature=0)


def new_net(kind: str = "lm2", span: int = 1) -> LanguageModel:
    return awake(build_model(tiny(KINDS[kind], attention_span=span), seed=1), seed=2)


def text(net: LanguageModel, ids: Tensor, max_tokens: int, sampling: Sampling, **arguments) -> Tensor:
    """int64 [B, produced]"""
    return torch.stack(list(generate(net, ids, max_tokens, sampling, **arguments)), dim=1)


@pytest.mark.parametrize(("kind", "span"), PAIRS)
@pytest.mark.parametrize("prompt", [1, 6, 8, 13])
def test_greedy_text_is_what_one_forward_predicts(kind, span, prompt):
    net, ids = new_net(kind, span), random_ids(3, 2, prompt)
    produced = text(net, ids, 15, GREEDY)
    predicted = net(torch.cat((ids, produced), dim=1)).logits.argmax(dim=-1)
    assert produced.shape == (2, 15)
    assert torch.equal(produced, predicted[:, prompt - 1 : -1])


def test_top_k_of_one_is_greedy():
    net, ids = new_net(), random_ids(3, 2, 6)
    greedy = text(net, ids, 15, GREEDY)
    assert torch.equal(text(net, ids, 15, Sampling(top_k=1), seed=8), greedy)
    assert torch.equal(text(net, ids, 15, Sampling(top_p=1e-6), seed=8), greedy)
    assert not torch.equal(text(net, ids, 15, Sampling(), seed=8), greedy)


def test_the_same_seed_gives_the_same_text():
    net, ids = new_net(), random_ids(3, 2, 6)
    first = text(net, ids, 20, Sampling(), seed=5)
    torch.manual_seed(77)
    assert torch.equal(text(net, ids, 20, Sampling(), seed=5), first)
    assert not torch.equal(text(net, ids, 20, Sampling(), seed=6), first)


def allowed_shares(logits: list[float], sampling: Sampling) -> list[float]:
    """Probability of each token, one after another from the likeliest on."""
    weights = torch.tensor(logits).double().div(sampling.temperature).softmax(dim=0).tolist()
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    kept = order[: sampling.top_k]
    mass, nucleus = 0.0, []
    for token in kept:
        if mass < (2.0 if sampling.top_p is None else sampling.top_p):
            nucleus.append(token)
        mass += weights[token] / sum(weights[other] for other in kept)
    total = sum(weights[token] for token in nucleus)
    return [weights[token] / total if token in nucleus else 0.0 for token in range(len(weights))]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(temperature=3.0),
        Sampling(top_k=1),
        Sampling(top_k=3),
        Sampling(top_k=100),
        Sampling(top_p=0.05),
        Sampling(top_p=0.5),
        Sampling(top_p=0.9),
        Sampling(top_p=1.0),
        Sampling(temperature=2.0, top_k=4, top_p=0.6),
    ],
    ids=str,
)
def test_tokens_are_drawn_from_the_shares_of_a_slow_reference(sampling):
    rows, draws = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), 20_000
    for logits in rows:
        drawn = sampling.draw(logits.expand(draws, -1), torch.Generator().manual_seed(2))
        counts = drawn.bincount(minlength=8)
        expected = torch.tensor(allowed_shares(logits.tolist(), sampling))
        assert torch.equal(counts > 0, expected > 0)
        deviation = (expected * (1 - expected) / draws).sqrt()
        assert ((counts / draws - expected).abs() <= 4 * deviation + 1e-9).all()


def test_every_row_is_masked_by_its_own_logits():
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    for sampling in (Sampling(top_k=1), Sampling(top_p=1e-6)):
        assert torch.equal(sampling.draw(rows, torch.Generator().manual_seed(2)), rows.argmax(dim=-1))


@pytest.mark.parametrize(("kind", "span"), PAIRS)
@pytest.mark.parametrize("length", [1, 8, 16, 27])
def test_a_prompt_read_in_chunks_is_read_in_one_call(kind, span, length, monkeypatch):
    net, ids, calls = new_net(kind, span), random_ids(3, 2, length), []
    net.embedding.register_forward_hook(lambda _module, args, _out: calls.append(args[0].size(1)))
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 11)  # two segments and a rest: rounded to 8
    logits, state = prefill(net, ids)
    assert calls == [8] * (length // 8) + ([length % 8] if length % 8 else [])
    whole = net(ids)
    torch.testing.assert_close(logits, whole.logits[:, -1], atol=1e-5, rtol=0)
    more = random_ids(4, 2, 6)
    torch.testing.assert_close(net(more, state=state).logits, net(more, state=whole.state).logits, atol=1e-5, rtol=0)


def test_a_prompt_is_never_cut_below_a_segment(monkeypatch):
    net, ids = new_net(), random_ids(3, 2, 14)
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 1)
    torch.testing.assert_close(prefill(net, ids)[0], net(ids).logits[:, -1], atol=1e-5, rtol=0)


def test_a_prompt_goes_on_where_the_state_ended():
    net, ids = new_net(), random_ids(3, 2, 14)
    _, state = prefill(net, ids[:, :6])
    torch.testing.assert_close(prefill(net, ids[:, 6:], state)[0], net(ids).logits[:, -1], atol=1e-5, rtol=0)


def test_generation_stops_when_every_stream_has_stopped():
    net, ids = new_net(), random_ids(3, 2, 6)
    free = text(net, ids, 40, Sampling(temperature=2.0), seed=5)
    ends = {}
    for token in range(VOCAB):
        first = [row.index(token) for row in free.tolist() if token in row]
        ends[token] = max(first) + 1 if len(first) == 2 else 40
    assert 40 in ends.values()
    assert min(ends.values()) < 40
    for token, end in ends.items():
        stopped = text(net, ids, 40, Sampling(temperature=2.0), seed=5, stop_id=token)
        assert torch.equal(stopped, free[:, :end])


def test_generation_holds_no_graph_and_leaves_gradients_on():
    net = new_net()
    logits, state = prefill(net, random_ids(3, 1, 6))
    assert not logits.requires_grad
    tokens = generate(net, random_ids(3, 1, 6), 3, GREEDY)
    next(tokens)
    assert net(random_ids(3, 1, 6), state=state).logits.requires_grad
    tokens.close()  # type: ignore[attr-defined]  # a generator


def test_asking_for_no_token_gives_none():
    assert list(generate(new_net(), random_ids(3, 1, 6), 0, GREEDY)) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"temperature": -0.5}, ["temperature", "-0.5"]),
        ({"top_k": 0}, ["top_k", "0"]),
        ({"top_p": 0.0}, ["top_p", "0.0"]),
        ({"top_p": 1.5}, ["top_p", "1.5"]),
    ],
)
def test_sampling_that_cannot_be_is_refused_with_field_and_value(arguments, said):
    with pytest.raises(ModelError) as error:
        Sampling(**arguments)
    assert all(words in str(error.value) for words in said), str(error.value)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ModelError, match="prompt"):
        next(generate(new_net(), torch.zeros(1, 0, dtype=torch.int64), 3, GREEDY))
