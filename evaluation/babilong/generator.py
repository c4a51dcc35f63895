"""Facts among background sentences, to a budget of tokens (BABILong §2)."""

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
_PATIENCE = 1000  # questions that do not fit, for one that does


class Encoder(Protocol):
    """What a budget is counted with: a `data_prep.Tokenizer`."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """`fact_places`: where each fact begins in `context`, characters; None when the text came from a file.

    `tokens`: of `context`, None when nobody counted them.
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
    """Samples as a pure function of questions, background, tokenizer and seed; the same on every machine.

    The same questions come at every length, as far as their facts fit.
    """

    background: Background | None
    tokenizer: Encoder
    seed: int = 0
    part: Part = "test"

    def samples(
        self, task: str, length: str, questions: Iterator[Question], count: int, least: int | None = None
    ) -> Iterator[Sample]:
        """The first `count` samples of the questions whose facts fit; fewer when the questions run out.

        least: a sample is of any length from so many tokens to `length`, evenly drawn; None: of `length`.
        """
        number, longest = 0, tokens_of(length)
        for tried, question in enumerate(questions if count else ()):
            if self._fits(question, longest):
                yield self.compose(task, length, question, number, least)
                number += 1
            if number == count or tried > _PATIENCE * (number + 1):
                return

    def compose(self, task: str, length: str, question: Question, number: int, least: int | None = None) -> Sample:
        """Hide the facts of one question."""
        rng = Keyed("sample", self.part, task, canonical(length), self.seed, number)
        longest = tokens_of(length)
        tokens = longest if least is None else least + rng.below(longest - least + 1)
        if longest == 0:
            return self._joined(task, length, question, [], [0] * len(question.facts))
        budget = context_tokens(tokens)
        noise = self._noise(budget - sum(self._count(fact) for fact in question.facts), rng)
        gaps = sorted(rng.below(len(noise) + 1) for _ in question.facts)
        sample = self._joined(task, length, question, noise, gaps)
        # Parts encoded alone may be a token shorter than in their place; what is too much goes from the noise's end.
        while noise and (excess := (sample.tokens or 0) - budget) > 0:
            noise[-1] = self._cut(noise[-1], self._count(noise[-1]) - excess)
            noise = noise if noise[-1] else noise[:-1]
            sample = self._joined(task, length, question, noise, [min(gap, len(noise)) for gap in gaps])
        return sample

    def _joined(self, task: str, length: str, question: Question, noise: list[str], gaps: list[int]) -> Sample:
        """`gaps`: before which background sentence each fact stands, ascending."""
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
        """Background sentences of together `budget` tokens, the last one cut."""
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
        together = len(self.tokenizer.encode(" ".join(question.facts)))  # may be a token longer than its parts
        return max(together, sum(self._count(fact) for fact in question.facts)) <= context_tokens(tokens)

    def _count(self, sentence: str) -> int:
        return len(self.tokenizer.encode(" " + sentence))

    def _cut(self, sentence: str, tokens: int) -> str:
        """Its first tokens, without half a character at the end."""
        if tokens <= 0:
            return ""
        return self.tokenizer.decode(self.tokenizer.encode(" " + sentence)[:tokens]).strip().rstrip("\ufffd")


def shuffled(questions: list[Question], *key: str | int) -> Iterator[Question]:
    """In an order that depends on the key alone."""
    return (questions[index] for index in Keyed("order", *key).order(len(questions)))
