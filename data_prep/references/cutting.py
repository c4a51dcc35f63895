"""Cut documents into references, at the ends of paragraphs, sentences or words where possible."""

from collections.abc import Iterator

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_prep.shards.reading import Tokens
from data_prep.tokenizers.tokenizer import Tokenizer

_SPELLINGS = {"▁": " ", "Ġ": " ", "Ċ": "\n", "<0x0A>": "\n"}  # of SentencePiece and of byte-level vocabularies
_CLOSING = "\"')]}”’»」』）"
_WIDE_END = "。！？"  # ends a sentence without a space after it

INSIDE_WORD, WORD, SENTENCE, PARAGRAPH = range(4)


def document_number(tokens: Tokens) -> int:
    """Returns a 64-bit hash of a document's tokens without bos and eos; equal in training data and references."""
    return xxhash.xxh3_64_intdigest(np.asarray(tokens, dtype="<i8").tobytes()) or 1


class Cutter:
    """Cuts documents of one tokenizer's tokens into references of at most `length` tokens."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self.length = length
        self._special = np.array([tokenizer.bos_id, tokenizer.eos_id])
        size = tokenizer.vocab_size
        self._newline, self._ends, self._wide = (np.zeros(size, dtype=np.bool_) for _ in range(3))
        self._closes, self._spaced = (np.zeros(size, dtype=np.bool_) for _ in range(2))
        for id in range(size):
            text = tokenizer.piece(id)
            for spelling, meaning in _SPELLINGS.items():
                text = text.replace(spelling, meaning)
            bare = text.rstrip().rstrip(_CLOSING)
            self._newline[id] = "\n" in text
            self._ends[id] = bare.endswith((".", "!", "?", "…"))
            self._wide[id] = bare.endswith(tuple(_WIDE_END))
            self._closes[id] = bool(text.strip()) and not bare
            self._spaced[id] = text[:1].isspace()

    def strengths(self, tokens: Tokens) -> NDArray[np.int8]:
        """Returns what a cut after each token ends, int8 [n]: PARAGRAPH, SENTENCE, WORD or INSIDE_WORD."""
        last = np.zeros(1, dtype=np.bool_)
        next_spaced = np.concatenate([self._spaced[tokens[1:]], ~last])
        next_newline = np.concatenate([self._newline[tokens[1:]], last])
        # A closing quote that is a token of its own belongs to the sentence that ends before it.
        after = self._closes[tokens] & np.concatenate([last, self._ends[tokens[:-1]]])
        sentence = ((self._ends[tokens] | after) & (next_spaced | next_newline)) | self._wide[tokens]
        out = np.where(next_spaced, WORD, INSIDE_WORD).astype(np.int8)
        out[sentence] = SENTENCE
        out[self._newline[tokens] & ~next_newline] = PARAGRAPH
        return out

    def bare(self, tokens: Tokens) -> Tokens:
        """Returns the document's tokens without bos and eos."""
        first = int(len(tokens) > 0 and tokens[0] == self._special[0])
        last = len(tokens) - int(len(tokens) > first and tokens[-1] == self._special[1])
        return tokens[first:last]

    def cuts(self, tokens: Tokens) -> Iterator[tuple[int, int]]:
        """Yields (begin, end) of each reference in the tokens of one document without bos and eos.

        A cut is made at the strongest place in the second half of the longest possible reference; of equals, the last.
        """
        if not len(tokens):
            return
        strengths, begin = self.strengths(tokens), 0
        while len(tokens) - begin > self.length:
            half = self.length // 2
            choice = strengths[begin + half : begin + self.length]
            end = begin + self.length - int(np.argmax(choice[::-1]))
            yield begin, end
            begin = end
        yield begin, len(tokens)
