"""Hide facts among background sentences, up to a budget of tokens (BABILong §2)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from data_prep.errors import DataError
from evaluation.babilong.background import Background
from evaluation.babilong.facts import Question
from evaluation.babilong.lengths import canonical, context_tokens, tokens_of
from evaluation.babilong.randomness import Keyed
from evaluation.babilong.simulator import Part

LEAST_TOKENS = 10  # of a background sentence
FACTS_PER_TOKEN = 8  # a sample has at most length/8 facts
_PATIENCE = 1000  # questions that are tried for one that fits


class Encoder(Protocol):
    """The part of `data_prep.Tokenizer` that counts a budget."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """A context with hidden facts, a question and its answer.

    fact_places: the character in `context` where each fact begins; None when the context was read from a file.
    tokens: of `context`; None: not counted.
    """

    task: str
    length: str
    context: str
    question: str
    answer: str
    facts: tuple[str, ...] | None = None
    fact_places: tuple[int, ...] | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Generator:
    """Makes samples as a pure function of questions, background, tokenizer and seed, equal on every machine.

    Every length has the same questions, as far as their facts fit.
    """

    background: Background | None
    tokenizer: Encoder
    seed: int = 0
    part: Part = "test"

    def samples(
        self, task: str, length: str, questions: Iterator[Question], count: int, least: int | None = None
    ) -> Iterator[Sample]:
        """Yield the first `count` samples whose facts fit, or fewer when there are not enough questions.

        least: a sample's length is drawn evenly from `least` tokens to `length`; None: all have `length`.
        """
        number, longest = 0, tokens_of(length)
        for tried, question in enumerate(questions if count else ()):
            if self._fits(question, longest):
                yield self.compose(task, length, question, number, least)
                number += 1
            if number == count or tried > _PATIENCE * (number + 1):
                return

    def compose(self, task: str, length: str, question: Question, number: int, least: int | None = None) -> Sample:
        """Return a sample that hides the facts of one question; number: of the sample."""
        rng = Keyed("sample", self.part, task, canonical(length), self.seed, number)
        longest = tokens_of(length)
        tokens = longest if least is None else least + rng.below(longest - least + 1)
        if longest == 0:
            return self._joined(task, length, question, [], [0] * len(question.facts))
        budget = context_tokens(tokens)
        noise = self._noise(budget - sum(self._count(fact) for fact in question.facts), rng)
        gaps = sorted(rng.below(len(noise) + 1) for _ in question.facts)
        sample = self._joined(task, length, question, noise, gaps)
        # Parts may have a token less alone than in the whole text; the excess is cut from the end of the noise.
        while noise and (excess := (sample.tokens or 0) - budget) > 0:
            noise[-1] = self._cut(noise[-1], self._count(noise[-1]) - excess)
            noise = noise if noise[-1] else noise[:-1]
            sample = self._joined(task, length, question, noise, [min(gap, len(noise)) for gap in gaps])
        return sample

    def _joined(self, task: str, length: str, question: Question, noise: list[str], gaps: list[int]) -> Sample:
        """Join facts and noise to a sample; gaps: the index in `noise` before which each fact is put, ascending."""
        parts: list[str] = []
        places, position, told = [], 0, 0
        for index in range(len(noise) + 1):
            while told < len(gaps) and gaps[told] == index:
                places.append(position)
                parts.append(question.facts[told])
                position += len(parts[-1]) + 1
                told += 1
            if index < len(noise):
                parts.append(noise[index])
                position += len(noise[index]) + 1
        context = " ".join(parts)
        tokens = len(self.tokenizer.encode(context))
        return Sample(
            task, canonical(length), context, question.question, question.answer, question.facts, tuple(places), tokens
        )

    def _noise(self, budget: int, rng: Keyed) -> list[str]:
        """Return background sentences of `budget` tokens in total, the last one cut."""
        if budget <= 0:
            return []
        if self.background is None:
            raise DataError("--background: lengths above 0k need background text; pass a folder of books")
        noise: list[str] = []
        for sentence in self.background.sentences(rng, budget):
            size = self._count(sentence)
            if size < LEAST_TOKENS:
                continue
            noise.append(sentence if size <= budget else self._cut(sentence, budget))
            budget -= size
            if budget <= 0:
                break
        return [sentence for sentence in noise if sentence]

    def _fits(self, question: Question, tokens: int) -> bool:
        if tokens == 0:
            return True
        if len(question.facts) > tokens // FACTS_PER_TOKEN:
            return False
        together = len(self.tokenizer.encode(" ".join(question.facts)))  # can be a token more than its parts
        return max(together, sum(self._count(fact) for fact in question.facts)) <= context_tokens(tokens)

    def _count(self, sentence: str) -> int:
        return len(self.tokenizer.encode(" " + sentence))

    def _cut(self, sentence: str, tokens: int) -> str:
        """Return the sentence's first tokens as text, without an incomplete character at the end."""
        if tokens <= 0:
            return ""
        return self.tokenizer.decode(self.tokenizer.encode(" " + sentence)[:tokens]).strip().rstrip("\ufffd")


def shuffled(questions: list[Question], *key: str | int) -> Iterator[Question]:
    """Yield the questions in an order that depends on the key alone."""
    return (questions[index] for index in Keyed("order", *key).order(len(questions)))
