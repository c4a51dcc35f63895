"""Training rows made on the spot: stories, among book sentences or not, packed into rows of token ids.

A block of steps is a pure function of (seed, stage, block): any number of processes makes the same rows, and a run that
was stopped goes on with the rows it would have had.
"""

import random
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from data_prep import Tokenizer, load_tokenizer
from evaluation.babilong.background import Background, open_background
from evaluation.babilong.dense import TASKS, asked_densely, simulated_facts
from evaluation.babilong.encoding import SentenceEncoder
from evaluation.babilong.material import Material, load_material
from evaluation.babilong.randomness import Keyed
from evaluation.babilong.recipe import Places
from evaluation.babilong.stories import Story, permuted
from experiments.babilong_parts.training import Rows
from experiments.babilong_parts.workers import begin

BLOCK = 32  # steps made at once
WAITING = 16  # stories that wait for a row at most
FEW = 40  # tokens at a row's end that take a story's beginning
Exercise = tuple[list[int], list[bool]]  # ids, and which of them are answers'


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum.

    tasks: each with its share of the tokens of facts and questions (a story of qa3 is 20 times as long as one of qa4).
    noise: book tokens among a story's facts, as (share of the stories, most tokens); what is left of the shares is
    without.  facts: most facts of a story, which is cut after 2 to so many; None: stories are whole.
    """

    name: str
    tasks: tuple[tuple[str, float], ...]
    noise: tuple[tuple[float, int], ...] = ()
    simulated: float = 0.5
    facts: int | None = None


class Writer:
    """Stories as token ids."""

    def __init__(self, tokenizer: Tokenizer, background: Background | None) -> None:
        self.tokenizer, self.background, self._encoder = tokenizer, background, SentenceEncoder(tokenizer)
        self._anchor = tokenizer.encode("a")

    def answer(self, answer: str) -> list[int]:
        """An answer and what ends it."""
        return [*self._encoder.alone(answer), self.tokenizer.eos_id]

    def _first(self, ids: list[int]) -> list[int]:
        """A sentence at the beginning of a text: without the space before it."""
        return self.tokenizer.encode(self.tokenizer.decode(ids).strip())

    def noise(self, tokens: int, rng: random.Random) -> list[list[int]]:
        """Book sentences of together about `tokens` tokens, in their order."""
        if tokens <= 0:
            return []
        assert self.background is not None
        found: list[list[int]] = []
        for sentence in self.background.sentences(Keyed("noise", rng.getrandbits(62)), tokens):
            ids = self.tokenizer.encode("a " + sentence)[len(self._anchor) :]
            if len(ids) < 10:
                continue
            found.append(ids[:tokens])
            tokens -= len(ids)
            if tokens <= 0:
                break
        return found

    def story(self, story: Story, noise: list[list[int]], rng: random.Random) -> Exercise:
        """The ids of bos and a story, and which of them belong to answers, with the token that ends an answer."""
        gaps = iter(sorted(rng.randrange(len(noise) + 1) for _ in story.facts))
        ids, answers, used = [self.tokenizer.bos_id], [False], 0
        for item in story.items:
            if isinstance(item, str):
                gap = next(gaps)
                for part in (*noise[used:gap], self._encoder.after(f" {item}").tolist()):
                    ids += self._first(part) if len(ids) == 1 else part
                used = gap
                answers += [False] * (len(ids) - len(answers))
            else:
                ids += self._encoder.after(f"\n{item.question}\n")
                answers += [False] * (len(ids) - len(answers))
                ids += self.answer(item.answer)
                answers += [True] * (len(ids) - len(answers))
        return ids, answers


def make_block(
    writer: Writer, material: Material, stage: Stage, key: tuple[int, int], batch: int, length: int
) -> list[Rows]:
    """`BLOCK` steps of `batch` rows of `length` + 1 tokens; key: (seed, block)."""
    rng = random.Random(f"{stage.name}/{key[0]}/{key[1]}")
    stories = _stories(writer, material, stage, rng, length + 1)
    size = (BLOCK, batch, length + 1)
    tokens, documents, answers = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size, bool)
    waiting: list[Exercise] = []
    for step in range(BLOCK):
        for row in range(batch):
            filled, number = 0, 0
            while filled <= length:
                ids, told = _next(waiting, stories, length + 1 - filled)
                end = min(length + 1, filled + len(ids))
                tokens[step, row, filled:end] = ids[: end - filled]
                answers[step, row, filled:end] = told[: end - filled]
                documents[step, row, filled:end] = number
                filled, number = end, number + 1
    return [Rows(tokens[i], documents[i, :, :-1], answers[i]) for i in range(BLOCK)]


def _stories(writer: Writer, material: Material, stage: Stage, rng: random.Random, longest: int) -> Iterator[Exercise]:
    """Stories without end, each task with its share of the tokens of facts and questions."""
    made = dict.fromkeys(dict(stage.tasks), 0.0)  # such tokens of each task so far, over its share
    while True:
        task = min(made, key=lambda name: (made[name], rng.random()))
        story = _story(task, material, rng, stage.simulated)
        if stage.facts is not None:
            story = story.beginning(rng.randint(2, stage.facts))
        alone = len(writer.story(story, [], rng)[0])
        noise = writer.noise(min(_noise_tokens(stage, rng), longest - alone), rng)
        made[task] += min(alone, longest) / dict(stage.tasks)[task]
        yield writer.story(story, noise, rng)


def _story(task: str, material: Material, rng: random.Random, simulated: float) -> Story:
    """A dense story; a share `simulated` of them the simulator's, the others' facts bAbI's with names exchanged."""
    if rng.random() < simulated:
        facts = simulated_facts(task, rng)
    else:
        facts = permuted(rng.choice(material.stories[task]), task, rng).facts
    return asked_densely(facts, task, rng, material.held_out)


def _next(waiting: list[Exercise], stories: Iterator[Exercise], room: int) -> Exercise:
    """The first story that fits into `room` tokens; one that does not waits for the next row.

    A story's last questions are its hardest: what a row's end cuts off would not be learned.  Only a row's last few
    tokens take the beginning of a story.
    """
    for place, exercise in enumerate(waiting):
        if len(exercise[0]) <= room:
            return waiting.pop(place)
    while len(waiting) < WAITING:
        exercise = next(stories)
        if len(exercise[0]) <= room or room < FEW:
            return exercise
        waiting.append(exercise)
    return waiting.pop(0)


def _noise_tokens(stage: Stage, rng: random.Random) -> int:
    draw = rng.random()
    for share, most in stage.noise:
        if draw < share:
            return rng.randrange(most + 1)
        draw -= share
    return 0


_worker: dict[str, tuple[Writer, Material]] = {}  # what a worker process has read


def _begin(places: Places) -> None:
    begin(5)
    background = open_background(list(places.books)) if places.books else None
    _worker["it"] = Writer(load_tokenizer(places.tokenizer), background), load_material(places.babi, TASKS)


def _make(path: str, stage: Stage, key: tuple[int, int], batch: int, length: int) -> str:
    """Write a block to a file: a pipe's many small reads would each wait for the threads that train."""
    rows = make_block(*_worker["it"], stage, key, batch, length)
    tokens = np.stack([row.tokens for row in rows]).astype(np.uint16)
    documents = np.stack([row.documents for row in rows]).astype(np.uint16)
    np.savez(path, tokens=tokens, documents=documents, answers=np.stack([row.answers for row in rows]))
    return path


def _read(path: str) -> list[Rows]:
    with np.load(path) as found:
        tokens, documents, answers = (found[name] for name in ("tokens", "documents", "answers"))
    return [Rows(t.astype(np.int64), d.astype(np.int64), a) for t, d, a in zip(tokens, documents, answers, strict=True)]


class Feed:
    """Steps of a stage by number, made ahead by other processes; learners of one feed share what was made."""

    def __init__(self, places: Places, seed: int, batch: int, length: int, workers: int, ahead: int, keep: int) -> None:
        self.seed, self.size, self.ahead, self.keep = seed, (batch, length), ahead, keep
        self._folder = tempfile.TemporaryDirectory(prefix="rows-")
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(places,))
        self._files: dict[tuple[str, int], Future[str]] = {}
        self._blocks: dict[tuple[str, int], list[Rows]] = {}
        self._lock = threading.Lock()

    def rows(self, stage: Stage, step: int) -> Rows:
        """The rows that a stage has at a step.  Waits until they are made."""
        block = step // BLOCK
        key = (stage.name, block)
        if key not in self._blocks:
            with self._lock:
                for number in range(block, block + self.ahead):
                    if (stage.name, number) not in self._files:
                        path = f"{self._folder.name}/{stage.name}-{number}.npz"
                        arguments = (path, stage, (self.seed, number), *self.size)
                        self._files[(stage.name, number)] = self._pool.submit(_make, *arguments)
                if key not in self._blocks:
                    self._blocks[key] = _read(self._files[key].result())
                while len(self._blocks) > self.keep:
                    self._blocks.pop(next(iter(self._blocks)))
        return self._blocks[key][step % BLOCK]

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._folder.cleanup()
