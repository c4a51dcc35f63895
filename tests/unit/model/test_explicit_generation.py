"""Text with references retrieved as it goes on: equal to reading everything anew, whatever else is in the batch."""

import zlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from model import LanguageModel, ModelError, build_model
from model.config import ExplicitConfig
from model.explicit import References, write
from model.explicit.generation import RetrievingReader, generate_with_memory
from model.generation import Sampling, generate
from tests.reference.small import DELTA, NONE, VOCAB, awake, random_ids, tiny
from tests.reference.small import one_thread as one_thread

pytestmark = pytest.mark.memory3
CHUNK = 2
EXPLICIT = ExplicitConfig(bos=(1, 5, 6), reference_length=5, tokens=2, chunk_length=CHUNK, references=3)
GREEDY = Sampling(0)


def net_of(kind: str = "none") -> LanguageModel:
    memory = {"none": NONE, "delta": DELTA}[kind]
    return awake(build_model(tiny(memory, explicit=EXPLICIT, num_layers=3), seed=1), seed=2).eval()


class Library:
    """A source of as many texts as there are queries: what is found is a function of the query alone."""

    each = 2

    def __init__(self, net: LanguageModel) -> None:
        self.net = net
        self.asked: list[list[int]] = []
        self.prefetched: list[list[int]] = []

    def references(self, query: Sequence[int]) -> tuple[Tensor, Tensor]:
        """tokens [each, R], lengths [each]"""
        generator = torch.Generator().manual_seed(zlib.crc32(bytes(query)))
        tokens = torch.randint(VOCAB, (self.each, EXPLICIT.reference_length), generator=generator)
        lengths = torch.randint(EXPLICIT.reference_length + 1, (self.each,), generator=generator)
        return tokens, lengths if len(query) else torch.zeros_like(lengths)

    def find(self, queries: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        self.asked += map(list, queries)
        tokens, lengths = map(torch.stack, zip(*map(self.references, queries), strict=True))
        memories = write(self.net, tokens.flatten(0, 1), lengths.flatten())
        return memories.unflatten(0, (-1, self.each)), lengths

    def prefetch(self, queries: Sequence[Sequence[int]]) -> None:
        self.prefetched += map(list, queries)


def query_of(tokens: list[int], prompt: int, chunk: int) -> list[int]:
    """What a chunk asks with, said once more: its own tokens in a prompt, else those before it."""
    begin = chunk * CHUNK
    end = min(begin + CHUNK, prompt) if prompt > begin else begin
    return tokens[max(0, end - CHUNK) : end]


@torch.no_grad()
def slow_next(net: LanguageModel, library: Library, tokens: list[int], prompt: int) -> int:
    """The likeliest next token, by reading all tokens and writing all references in one call."""
    chunks = range(-(-len(tokens) // CHUNK))
    found = [library.references(query_of(tokens, prompt, chunk)) for chunk in chunks]
    references = References(
        torch.cat([lengths for _, lengths in found]).unsqueeze(0),
        torch.cat([texts for texts, _ in found]).unsqueeze(0),
        each=library.each,
    )
    return int(net(torch.tensor([tokens]), references=references).logits[0, -1].argmax())


@pytest.mark.parametrize("kind", ["none", "delta"])
@pytest.mark.parametrize("lengths", [[5], [4, 4], [1, 7, 2]])
def test_generation_equals_reading_everything_anew(kind: str, lengths: list[int]) -> None:
    net = net_of(kind)
    library, prompts = Library(net), [random_ids(n, 1, length)[0].tolist() for n, length in enumerate(lengths)]
    written: list[list[int]] = [list(prompt) for prompt in prompts]
    for row, token in generate_with_memory(net, prompts, library, 9, GREEDY):
        written[row].append(token)
    for prompt, tokens in zip(prompts, written, strict=True):
        expected = list(prompt)
        for _ in range(9):
            expected.append(slow_next(net, library, expected, len(prompt)))
        assert tokens == expected


def test_what_is_read_matters() -> None:
    net = net_of()
    prompt = [random_ids(0, 1, 6)[0].tolist()]
    with_references = list(generate_with_memory(net, prompt, Library(net), 12, GREEDY))
    assert with_references != list(generate_with_memory(net, prompt, None, 12, GREEDY))


def test_without_a_source_it_is_plain_generation() -> None:
    net, prompt = net_of("delta"), random_ids(3, 1, 7)
    plain = [int(token) for token in generate(net, prompt, 8, GREEDY)]
    assert [token for _, token in generate_with_memory(net, prompt.tolist(), None, 8, GREEDY)] == plain


def test_a_stream_that_has_ended_asks_no_more() -> None:
    net = net_of()
    library = Library(net)
    texts = [random_ids(n, 1, 4)[0].tolist() for n in range(6)]
    said = [[token for _, token in generate_with_memory(net, [text], library, 9, GREEDY)] for text in texts]
    one, other = next((i, j) for i in range(6) for j in range(6) if said[i][0] not in said[j])
    library.asked.clear()
    stop = said[one][0]
    found = list(generate_with_memory(net, [texts[one], texts[other]], library, 9, GREEDY, stop_id=stop))
    assert [token for row, token in found if row == 0] == [stop]
    assert [token for row, token in found if row == 1] == said[other]
    assert library.asked.count([]) > 1  # nothing is retrieved for the first one's later chunks


def test_what_comes_next_is_fetched_ahead() -> None:
    net = tiny(explicit=EXPLICIT.model_copy(update={"chunk_length": 4}), segment_length=4, num_layers=3)
    model = build_model(net, seed=1).eval()
    library, prompt = Library(model), random_ids(1, 1, 6)[0].tolist()
    tokens = [*prompt, *(token for _, token in generate_with_memory(model, [prompt], library, 8, GREEDY))]
    # Three quarters through chunks 1, 2 (tokens 4..7, 8..11): what stands there so far.
    assert tokens[7 - 4 : 7] in library.prefetched
    assert tokens[11 - 4 : 11] in library.prefetched


@torch.no_grad()
def test_with_shifted_retrieval_nothing_depends_on_later_tokens() -> None:
    """Retrieves anew after the future has changed."""
    net = net_of()
    texts = random_ids(5, 2, 11)
    for place in range(1, 11):
        other = texts.clone()
        other[:, place] = (other[:, place] + 1) % VOCAB
        read = [RetrievingReader(net, Library(net), ids.tolist(), shifted=True).read(11) for ids in (texts, other)]
        torch.testing.assert_close(read[0][:, :place], read[1][:, :place], rtol=0, atol=0)
        assert not torch.equal(read[0][:, place:], read[1][:, place:])
    # As a prompt its chunks ask with their own tokens: what stands at 9 matters at 8.
    changed = texts.clone()
    changed[:, 9] = (changed[:, 9] + 1) % VOCAB
    own = [RetrievingReader(net, Library(net), ids.tolist()).read(11) for ids in (texts, changed)]
    assert torch.equal(own[0][:, :8], own[1][:, :8])
    assert not torch.equal(own[0][:, 8], own[1][:, 8])


def test_what_cannot_be_read_is_refused() -> None:
    net = net_of()
    with pytest.raises(ModelError, match="begin with the tokenizer's BOS"):
        RetrievingReader(net, None, [[1], []])
    plain = build_model(tiny(NONE), seed=0)
    with pytest.raises(ModelError, match=r"has no explicit memory.*set model\.explicit"):
        RetrievingReader(plain, Library(net), [[1]])
