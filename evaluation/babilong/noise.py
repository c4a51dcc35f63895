"""Book sentences for exercises that are made during training; sentences are split once and cached."""

from functools import lru_cache

from evaluation.babilong.background import Background, split_sentences
from evaluation.babilong.encoding import SentenceEncoder
from evaluation.babilong.generator import LEAST_TOKENS
from evaluation.babilong.randomness import Keyed

_CHARACTERS = 50_000  # of a book that are split into sentences at once
_KEPT = 4096  # such parts that are cached, 200 MB of text
_TRIES = 1000


class Noise:
    """Sentences of `background` from a random place on, as `Background.sentences`, but faster."""

    def __init__(self, background: Background, encoder: SentenceEncoder) -> None:
        self._background, self._encoder = background, encoder
        self._piece = lru_cache(maxsize=_KEPT)(self._split)

    def sentences(self, tokens: int, rng: Keyed) -> list[str]:
        """Return sentences of `tokens` tokens in total or a few less, the last one cut; none has less than 10 tokens.

        Raises:
            DataError: the books have no sentences.
        """
        chosen = list[str]()
        while tokens > 0:
            for sentence in self._from_somewhere(rng):
                size = len(self._encoder.after(" " + sentence))
                chosen.append(sentence if size <= tokens else self._encoder.cut(" " + sentence, tokens).strip())
                tokens -= size
                if tokens <= 0:
                    break
        return [sentence for sentence in chosen if sentence]

    def _from_somewhere(self, rng: Keyed) -> list[str]:
        for _ in range(_TRIES):
            book = rng.below(self._background.count)
            start = rng.below(max(1, len(self._background.text(book))))
            sentences = self._piece(book, start // _CHARACTERS)
            if sentences:
                return sentences[start % _CHARACTERS * len(sentences) // _CHARACTERS :]
        raise self._background.empty()

    def _split(self, book: int, number: int) -> list[str]:
        """Return the whole sentences of a part of a book that are long enough."""
        text = self._background.text(book)[number * _CHARACTERS : (number + 1) * _CHARACTERS]
        inner = split_sentences(text)[1:-1]
        return [sentence for sentence in inner if len(self._encoder.after(" " + sentence)) >= LEAST_TOKENS]
