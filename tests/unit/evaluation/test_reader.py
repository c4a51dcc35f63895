"""Reading in batches gives what one sample alone, in one call, gives; a long one takes no more memory than a short."""

import resource
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from evaluation.reader import Reader, encode_pair
from model import LanguageModel, ModelError, build_model
from model.state import StreamState
from tests.reference.small import KINDS, SEGMENT, VOCAB, awake, tiny
from tests.reference.small import one_thread as one_thread

LENGTHS = [9, 3, 14, 9, 1, 8, 30]
STOP = 5


def new_net(kind: str) -> LanguageModel:
    return awake(build_model(tiny(KINDS[kind]), seed=1), seed=2).eval()


def texts(seed: int, lengths: list[int]) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, length).tolist() for length in lengths]


@torch.no_grad()
def log_p(net: LanguageModel, ids: list[int]) -> Tensor:
    """Of one sample, in one call: [L, V]"""
    return net(torch.tensor([ids])).logits[0].log_softmax(-1)


def alone(net: LanguageModel, prompt: list[int], count: int, stop: int | None = None) -> list[int]:
    """The obvious greedy loop, reading everything anew for each token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count:
        token = int(log_p(net, ids)[-1].argmax())
        if token == stop:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_answers_are_those_of_each_sample_alone(kind: str, batch: int) -> None:
    net, prompts = new_net(kind), texts(3, LENGTHS)
    reader = Reader(net, batch_size=batch, chunk_tokens=2 * SEGMENT * batch)
    stop = alone(net, prompts[0], 11)[2]
    expected = [alone(net, prompt, 11, stop) for prompt in prompts]
    assert reader.answers(prompts, 11, [stop]) == expected
    assert len({len(answer) for answer in expected}) > 1  # some stopped
    assert reader.answers(prompts, 0) == [[] for _ in prompts]


@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_are_those_of_each_request_alone(kind: str) -> None:
    net = new_net(kind)
    contexts = texts(4, [3, 8, 13, 3])
    requests = [(context, [letter]) for context in contexts for letter in (1, 2, 3)]
    requests += [(context, more) for context in contexts for more in texts(6, [2, 6])]
    found = Reader(net, batch_size=3, chunk_tokens=SEGMENT).log_likelihoods(requests)
    for (context, continuation), (score, greedy) in zip(requests, found, strict=True):
        expected = log_p(net, context + continuation)[len(context) - 1 : -1]
        assert score == pytest.approx(sum(expected[i, t].item() for i, t in enumerate(continuation)), abs=1e-4)
        assert greedy == (expected.argmax(-1).tolist() == continuation)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(lengths=st.lists(st.integers(1, 25), min_size=1, max_size=6), batch=st.integers(1, 4), seed=st.integers(0, 99))
def test_what_a_sample_is_batched_with_changes_nothing(lengths: list[int], batch: int, seed: int) -> None:
    net, prompts = new_net("lm2"), texts(seed, lengths)
    together = Reader(net, batch_size=batch, chunk_tokens=8).answers(prompts, 4, [STOP])
    assert together == [Reader(net, batch_size=1).answers([prompt], 4, [STOP])[0] for prompt in prompts]


def test_requests_that_differ_in_the_last_token_are_read_once() -> None:
    net = new_net("lm2")
    read: list[int] = []
    context = texts(5, [12])[0]
    Reader(net, advance=read.append).log_likelihoods([(context, [letter]) for letter in range(4)])
    assert sum(read) == len(context)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_by_position(kind: str) -> None:
    net, ids = new_net(kind), np.array(texts(7, [23, 23]))
    found = np.concatenate(list(Reader(net, chunk_tokens=2 * SEGMENT).losses(ids)), axis=1)
    for row, sample in enumerate(ids.tolist()):
        expected = -log_p(net, sample)[:-1].gather(1, torch.tensor(sample[1:]).unsqueeze(1)).squeeze(1)
        np.testing.assert_allclose(found[row], expected.numpy(), atol=1e-5)


def test_nothing_to_read_is_refused() -> None:
    reader = Reader(new_net("none"))
    with pytest.raises(ModelError, match="it has no token; begin with"):
        reader.answers([[1], []], 3)
    with pytest.raises(ModelError, match="need a token each"):
        reader.log_likelihoods([([1], [])])


def test_pairs_are_cut_like_the_harness_cuts_them() -> None:
    def encode(text: str) -> list[int]:
        return [ord(letter) for letter in text]

    assert encode_pair(encode, "Answer: ", "A") == (encode("Answer:"), encode(" A"))


def tensors(value: object) -> int:
    """Bytes of every tensor a state holds."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, tuple | list):
        return sum(map(tensors, value))
    return sum(map(tensors, vars(value).values())) if hasattr(value, "__dataclass_fields__") else 0


@pytest.mark.parametrize("kind", KINDS)
def test_state_and_calls_do_not_grow_with_the_sample(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is carried and how much is computed at once: the same at 8 times the length."""
    net = new_net(kind)
    seen: list[tuple[int, int]] = []
    original = LanguageModel.hidden

    def hidden(self: LanguageModel, ids: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, StreamState]:
        result = original(self, ids, *rest, **named)
        seen.append((ids.size(1), tensors(result[1])))
        return result

    monkeypatch.setattr(LanguageModel, "hidden", hidden)
    largest = []
    for length in (64, 512):
        seen.clear()
        Reader(net, batch_size=2, chunk_tokens=32).answers(texts(1, [length, length + 3]), 4)
        largest.append((max(width for width, _ in seen), max(size for _, size in seen)))
    assert largest[0] == largest[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lm2", "delta", "rmt"])
def test_peak_memory_of_128k_tokens_is_that_of_8k(kind: str) -> None:
    """Of the process: the first length also pays for what is loaded once."""
    reader, peaks = Reader(new_net(kind), batch_size=2, chunk_tokens=4096), []
    for length in (8_000, 8_000, 64_000, 128_000):
        reader.answers(texts(1, [length, length]), 4)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    assert peaks[-1] - peaks[1] < 32, peaks  # MiB; the ids of the prompts are 10
