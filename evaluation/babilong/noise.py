"""Book sentences to hide facts among, found once and kept: for exercises made on the spot."""

from functools import lru_cache

from evaluation.babilong.background import Background, split_sentences
from evaluation.babilong.encoding import SentenceEncoder
from evaluation.babilong.generator import LEAST_TOKENS
from evaluation.babilong.randomness import Keyed

_CHARACTERS = 50_000  # of a book, split into sentences at once
_KEPT = 4096  # such pieces: 200 MB of text
_TRIES = 1000


class Noise:
    """Sentences of `background` in their order, from a random place on, as `Background.sentences`, but faster."""

    def __init__(self, background: Background, encoder: SentenceEncoder) -> None:
        self._background, self._encoder = background, encoder
        self._piece = lru_cache(maxsize=_KEPT)(self._split)

    def sentences(self, tokens: int, rng: Keyed) -> list[str]:
        """Sentences of together `tokens` tokens or a few less, the last one cut; those under 10 tokens are left out.

        Raises:
            DataError: the books have no sentences.
        """
        found = list[str]()
        while tokens > 0:
            for sentence in self._from_somewhere(rng):
                size = len(self._encoder.after(" " + sentence))
                found.append(sentence if size <= tokens else self._encoder.cut(" " + sentence, tokens).strip())
                tokens -= size
                if tokens <= 0:
                    break
        return [sentence for sentence in found if sentence]

    def _from_somewhere(self, rng: Keyed) -> list[str]:
        for _ in range(_TRIES):
            book = rng.below(self._background.count)
            start = rng.below(max(1, len(self._background.text(book))))
            sentences = self._piece(book, start // _CHARACTERS)
            if sentences:
                return sentences[start % _CHARACTERS * len(sentences) // _CHARACTERS :]
        raise self._background.empty()

    def _split(self, book: int, number: int) -> list[str]:
        """Whole sentences of a piece of a book that are long enough."""
        text = self._background.text(book)[number * _CHARACTERS : (number + 1) * _CHARACTERS]
        inner = split_sentences(text)[1:-1]
        return [sentence for sentence in inner if len(self._encoder.after(" " + sentence)) >= LEAST_TOKENS]
