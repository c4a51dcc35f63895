"""Exercises of several questions as token ids, sentence by sentence: each sentence is encoded once."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from data_prep import Tokenizer
from data_prep.errors import DataError
from evaluation.babilong.stories import Story

_KEPT = 1_000_000  # encoded texts: some 500 MB
_BEFORE = "a"  # stands for any text before a space or a new line


class Turn(NamedTuple):
    """Sentences, facts among others, then a question and its answer."""

    sentences: tuple[str, ...]
    question: str
    answer: str


def turns_of(story: Story, noise: Sequence[str], gaps: Sequence[int]) -> list[Turn]:
    """The story's turns, with `noise` sentences between its facts and questions.

    gaps: before which sentence of the noise each fact and question stands, ascending, one for each item but the last,
    which comes after all of the noise.
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
    """A tokenizer that encodes sentences in their places and remembers them.

    The ids are those of the whole text, since a tokenizer cuts at the space before a sentence. That it does is
    checked of every sentence.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.type = "H" if tokenizer.vocab_size <= 1 << 16 else "I"
        self._before = tokenizer.encode(_BEFORE)
        self._alone: dict[str, array[int]] = {}
        self._after: dict[str, array[int]] = {}

    def alone(self, text: str) -> "array[int]":
        """Ids of a text with nothing before it."""
        ids = self._alone.get(text)
        return ids if ids is not None else self._keep(self._alone, text, self.tokenizer.encode(text))

    def after(self, text: str) -> "array[int]":
        """Ids of a text that begins with a space, where it stands after another."""
        ids = self._after.get(text)
        if ids is not None:
            return ids
        found = self.tokenizer.encode(_BEFORE + text)
        if found[: len(self._before)] != self._before:
            raise DataError(f"--tokenizer: it joins {text[:20]!r} with what stands before it; take one that cuts there")
        return self._keep(self._after, text, found[len(self._before) :])

    def cut(self, text: str, tokens: int) -> str:
        """The text's first tokens, without half a character at the end."""
        return self.tokenizer.decode(self.after(text)[:tokens].tolist()).rstrip("\ufffd") if tokens > 0 else ""

    def exercise(self, turns: Sequence[Turn]) -> tuple["array[int]", list[tuple[int, int]]]:
        """(ids, where answers begin and end), as data_prep lays out an exercise: bos, the turns, each with its eos.

        A turn is `FINETUNED_LAYOUT` filled, then the answer, then eos, which ends the answer and not the story: where
        stories end is told by document numbers. The next turn's sentences follow after a space.
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
        found = known[text] = array(self.type, ids)
        return found
