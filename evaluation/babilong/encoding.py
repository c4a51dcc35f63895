"""Encode exercises of several questions; each sentence is encoded once and cached."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from data_prep import Tokenizer
from data_prep.errors import DataError
from evaluation.babilong.stories import Story

_KEPT = 1_000_000  # encoded texts that are cached, about 500 MB
_BEFORE = "a"  # represents any text before a space or a newline


class Turn(NamedTuple):
    """Sentences, facts and others, then a question and its answer."""

    sentences: tuple[str, ...]
    question: str
    answer: str


def turns_of(story: Story, noise: Sequence[str], gaps: Sequence[int]) -> list[Turn]:
    """Return the story's turns, with the sentences `noise` between its facts and questions.

    gaps: for each fact and question but the last, the sentence of the noise before which it is put, ascending. The last
    item comes after all of the noise.
    """
    turns, sentences, used = list[Turn](), list[str](), 0
    for item, gap in zip(story.items, (*gaps, len(noise)), strict=True):
        sentences += noise[used:gap]
        used = gap
        if isinstance(item, str):
            sentences.append(item)
        else:
            turns.append(Turn(tuple(sentences), item.question, item.answer))
            sentences = []
    return turns


class SentenceEncoder:
    """Encodes sentences one by one, and caches their ids.

    Together they are the ids of the whole text, if the tokenizer cuts before the space that begins a sentence. That is
    checked for every sentence.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.type = "H" if tokenizer.vocab_size <= 1 << 16 else "I"
        self._before = tokenizer.encode(_BEFORE)
        self._alone: dict[str, array[int]] = {}
        self._after: dict[str, array[int]] = {}

    def alone(self, text: str) -> "array[int]":
        """Return the ids of a text without text before it."""
        ids = self._alone.get(text)
        return ids if ids is not None else self._keep(self._alone, text, self.tokenizer.encode(text))

    def after(self, text: str) -> "array[int]":
        """Return the ids of a text that begins with a space, after another text.

        Raises `DataError` when the tokenizer joins it with the text before.
        """
        ids = self._after.get(text)
        if ids is not None:
            return ids
        both = self.tokenizer.encode(_BEFORE + text)
        if both[: len(self._before)] != self._before:
            raise DataError(f"--tokenizer: it joins {text[:20]!r} with the text before; use one that cuts between them")
        return self._keep(self._after, text, both[len(self._before) :])

    def cut(self, text: str, tokens: int) -> str:
        """Return the text's first tokens as text, without an incomplete character at the end."""
        return self.tokenizer.decode(self.after(text)[:tokens].tolist()).rstrip("\ufffd") if tokens > 0 else ""

    def exercise(self, turns: Sequence[Turn]) -> tuple["array[int]", list[tuple[int, int]]]:
        """Return the ids of an exercise as data_prep lays it out, and where its answers begin and end.

        The ids are bos, then the turns: the filled `FINETUNED_LAYOUT`, the answer and eos. eos ends the answer, not the
        story, whose end only document numbers show. A space comes before the next turn's sentences.
        """
        ids, answers = array(self.type, (self.tokenizer.bos_id,)), list[tuple[int, int]]()
        for turn in turns:
            *texts, last = turn.sentences or ("",)
            texts.append(f"{last}\n{turn.question}\n")  # FINETUNED_LAYOUT
            ids += self.alone(f" {texts[0]}" if answers and turn.sentences else texts[0])
            for text in texts[1:]:
                ids += self.after(" " + text)
            begin = len(ids)
            ids += self.alone(turn.answer)
            ids.append(self.tokenizer.eos_id)
            answers.append((begin, len(ids)))
        return ids, answers

    def _keep(self, known: dict[str, "array[int]"], text: str, ids: list[int]) -> "array[int]":
        if len(known) >= _KEPT:
            known.clear()
        known[text] = array(self.type, ids)
        return known[text]
