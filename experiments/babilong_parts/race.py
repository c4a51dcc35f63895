"""Several models trained side by side on one device, each in a thread with a CUDA stream of its own, then measured.

Every model sees the same rows in the same order until its stage changes: a stage ends when the held-out questions of
its tasks are answered well enough, or when its share of the steps is used up.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evaluation.babilong.dense import TASKS
from experiments.babilong_parts.folder import Log
from experiments.babilong_parts.kinds import Kind, Shape, model_config
from experiments.babilong_parts.measuring import Asked, right_answers
from experiments.babilong_parts.rows import Feed, Stage
from experiments.babilong_parts.training import Learner, Recipe
from model import ModelConfig, build_model
from model.cost import count_parameters
from model.network import LanguageModel

ALL = tuple((task, 1.0) for task in TASKS)
LEAST = 0.08  # share of a task that is answered perfectly, before the shares are made to add up to one


@dataclass(frozen=True)
class Goal:
    """A stage, what ends it: accuracies to reach on held-out questions, or a share of all steps."""

    stage: Stage
    until: tuple[tuple[str, float], ...]
    latest: float


def curriculum(row_length: int) -> tuple[Goal, ...]:
    """Return the stages in their order.

    One task in stories of two to five facts, then two tasks until they are learned, then five, then five among book
    sentences.
    """
    shortest = Stage("one", (("qa1", 1.0),), facts=5)
    first = Stage("two", (("qa1", 1.0), ("qa2", 2.0)))
    noise = ((0.15, row_length // 5), (0.45, row_length * 4 // 5))
    return (
        Goal(shortest, (("qa1", 0.7),), 0.15),
        Goal(first, (("qa1", 0.95), ("qa2", 0.85)), 0.25),
        Goal(Stage("five", ALL), (("qa2", 0.95), ("qa3", 0.85)), 0.6),
        Goal(Stage("books", ALL, noise), (), 1.0),
    )


@dataclass(frozen=True)
class Entry:
    """One model of the comparison.  sparse: `memory.sparse_writes`; span: segments that attention sees."""

    kind: Kind
    segment: int
    peak: float
    seed: int
    sparse: bool = False
    span: int = 1

    @property
    def name(self) -> str:
        more = ("-sparse" if self.sparse else "") + (f"-span{self.span}" if self.span > 1 else "")
        return f"{self.kind}{more}-t{self.segment}-lr{self.peak:g}-s{self.seed}"


def configuration(entry: Entry, shape: Shape) -> ModelConfig:
    """The entry's model."""
    config = model_config(entry.kind, shape, entry.segment)
    memory = config.memory.model_copy(update={"sparse_writes": entry.sparse})
    span = config.attention_span if entry.span == 1 else entry.span
    return config.model_copy(update={"memory": memory, "attention_span": span})


def by_errors(stage: Stage, right: dict[str, float]) -> Stage:
    """The stage with its tokens shared out among its tasks in proportion to their errors on held-out questions."""
    wanted = {task: max(LEAST, 1.0 - right[task]) for task, _ in stage.tasks}
    shares = tuple((task, round(share / sum(wanted.values()), 2)) for task, share in wanted.items())
    return replace(stage, name=f"{stage.name} {' '.join(f'{share:.2f}' for _, share in shares)}", tasks=shares)


ABREAST = 100  # steps after which racers on a GPU wait for each other


class Racer:
    """An entry's learner, its place in the curriculum, and its line in the log."""

    def __init__(self, entry: Entry, shape: Shape, batch: int, steps: int, device: torch.device, folder: Path) -> None:
        self.entry, self.folder, self.device = entry, folder, device
        config = configuration(entry, shape)
        self.parameters = count_parameters(config).total
        recipe = Recipe(entry.peak, steps)
        net = build_model(config, seed=entry.seed)
        self.learner = Learner(net, recipe, (batch, shape.row_length), device)
        self.goals, self.goal = curriculum(shape.row_length), 0
        self.stage = self.goals[0].stage  # with the shares its tasks have now

    @property
    def state(self) -> Path:
        return self.folder / f"{self.entry.name}.pt"

    def resume(self) -> None:
        """Go on where this entry was saved, if it was."""
        place = self.state.with_suffix(".json")
        if self.state.is_file() and place.is_file():
            self.learner.load(self.state)
            found = json.loads(place.read_text())
            self.goal = found["goal"]
            self.stage = self.goals[self.goal].stage
            if found["right"]:
                self.stage = by_errors(self.stage, found["right"])

    def save(self, right: dict[str, float] | None = None) -> None:
        """Weights and moments, then the place in the curriculum.  right: accuracies that the shares follow."""
        self.learner.save(self.state)
        place = {"goal": self.goal, "right": right}
        self.state.with_suffix(".json").write_text(json.dumps(place))

    def run(
        self,
        feed: Feed,
        held: dict[str, list[Asked]],
        log: Log,
        every: int,
        deadline: float,
        abreast: Callable[[], None],
    ) -> None:
        """Train to the recipe's last step, or until `deadline` (time.monotonic).  abreast: waits for the others."""
        learner, since, at = self.learner, time.monotonic(), self.learner.step
        while learner.step < learner.recipe.steps and time.monotonic() < deadline:
            learner.train(feed.rows(self.stage, learner.step))
            if learner.step % ABREAST == 0:
                abreast()
            if learner.step % every and learner.step < learner.recipe.steps:
                continue
            loss, share = learner.take(learner.step - at)
            right = self.measure(held)
            seconds = time.monotonic() - since
            line = {"entry": self.entry.name, "step": learner.step, "loss": loss, "tokens_right": share}
            line |= {"stage": self.stage.name, "seconds": seconds, **right}
            log(line)
            if not math.isfinite(loss):
                return
            at = learner.step
            self._next_stage(right)
            if self.device.type == "cpu":
                self.save(right)

    def measure(self, samples: dict[str, list[Asked]]) -> dict[str, float]:
        """Share of exactly right answers of each cell."""
        return shares(self.learner.net, samples, self.device)

    def _next_stage(self, right: dict[str, float]) -> None:
        goal = self.goals[self.goal]
        reached = bool(goal.until) and all(right.get(task, 0.0) >= least for task, least in goal.until)
        if self.goal + 1 < len(self.goals) and (
            reached or self.learner.step >= goal.latest * self.learner.recipe.steps
        ):
            self.goal += 1
        self.stage = by_errors(self.goals[self.goal].stage, right)


class _Pace:
    """Called while all racers wait: fixes once how many steps the time allows, the same for all."""

    def __init__(self, racers: Sequence[Racer], log: Log, deadline: float) -> None:
        self.racers, self.log, self.deadline, self.met = racers, log, deadline, list[float]()

    def __call__(self) -> None:
        if self.racers[0].device.type == "cpu" or len(self.met) > 4:
            return
        self.met.append(time.monotonic())
        if len(self.met) == 4:  # the first hundred steps wait for the first rows
            seconds = (self.met[-1] - self.met[0]) / (3 * ABREAST)
            possible = self.racers[0].learner.step + int((self.deadline - self.met[-1]) / seconds * 0.93)
            steps = min(possible, self.racers[0].learner.recipe.steps)
            for racer in self.racers:
                racer.learner.recipe = replace(racer.learner.recipe, steps=steps)
            self.log({"steps": steps, "seconds a step, side by side": seconds})


def shares(net: LanguageModel, samples: dict[str, list[Asked]], device: torch.device) -> dict[str, float]:
    """Share of exactly right answers of each cell; all cells are read together."""
    together = [asked for cell in samples.values() for asked in cell]
    right = iter(right_answers(net, together, device, batch=256, piece=1024))
    return {name: sum(next(right) for _ in cell) / max(1, len(cell)) for name, cell in samples.items()}


def race(
    racers: Sequence[Racer],
    feed: Feed,
    held: dict[str, list[Asked]],
    log: Log,
    every: int,
    deadline: float,
) -> set[str]:
    """Train all racers at once.

    A thread that fails writes its error to the log and leaves the others alone.  Returns the names of the failed.
    """
    lost = set[str]()
    for racer in racers:  # one after the other: nothing else may use the device while a graph is captured
        if racer.device.type == "cuda":
            try:
                since = time.monotonic()
                rows = feed.rows(racer.stage, 0)
                racer.learner.capture(rows)
                log({"entry": racer.entry.name, "captured": time.monotonic() - since, **racer.learner.timed(rows)})
            except Exception as error:
                lost.add(racer.entry.name)
                log({"entry": racer.entry.name, "not captured": str(error)[:500]})

    running = [racer for racer in racers if racer.entry.name not in lost]
    meeting = threading.Barrier(max(1, len(running)), action=_Pace(running, log, deadline))

    def abreast() -> None:
        with suppress(threading.BrokenBarrierError):  # one has ended: the others go on, each at its own speed
            meeting.wait()

    def one(racer: Racer) -> None:
        try:
            with torch.cuda.stream(racer.learner.stream):
                racer.run(feed, held, log, every, deadline, abreast)
        except Exception as error:
            lost.add(racer.entry.name)
            log({"entry": racer.entry.name, "failed": repr(error)[:500]})
        finally:
            meeting.abort()

    threads = [threading.Thread(target=one, args=(racer,)) for racer in running]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return lost


def described(racer: Racer) -> dict[str, Any]:
    """An entry's settings and size, as a line of the log."""
    return {"entry": racer.entry.name, **asdict(racer.entry), "parameters": racer.parameters}
