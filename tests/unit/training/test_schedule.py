"""Learning rate and position: pure functions, checked by hand, by invariants and against a loop."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import LearningRate, Phase
from training.schedule import Position, learning_rate, position

WSD = LearningRate(schedule="wsd", peak=1.0, warmup_tokens=100, decay_tokens=200, final_fraction=0.1)
COSINE = LearningRate(schedule="cosine", peak=2.0, warmup_tokens=100, final_fraction=0.25)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (0, 0.0),
        (1, 0.01),
        (50, 0.5),
        (99, 0.99),
        (100, 1.0),
        (500, 1.0),
        (800, 1.0),
        (850, 0.775),  # a quarter of the way from 1.0 to 0.1
        (900, 0.55),
        (999, 0.1045),
        (1000, 0.1),
    ],
)
def test_wsd_by_hand(tokens: int, expected: float) -> None:
    assert learning_rate(WSD, tokens, 1000) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (0, 0.0),
        (50, 1.0),
        (100, 2.0),
        (325, 0.5 + 1.5 * (0.5 + math.sqrt(0.5) / 2)),  # cos 45°
        (550, 1.25),
        (700, 0.875),  # two thirds: 1 + cos 120° = 1/2
        (1000, 0.5),
    ],
)
def test_cosine_by_hand(tokens: int, expected: float) -> None:
    assert learning_rate(COSINE, tokens, 1000) == pytest.approx(expected, rel=1e-12)


def test_no_warmup_begins_at_the_peak_and_no_decay_stays_there() -> None:
    constant = LearningRate(peak=3e-4)
    assert {learning_rate(constant, tokens, 1000) for tokens in (0, 1, 500, 1000)} == {3e-4}


def test_final_fractions_at_the_ends_of_their_range() -> None:
    for schedule in ("wsd", "cosine"):
        down = LearningRate(schedule=schedule, peak=1.0, decay_tokens=500, final_fraction=0.0)
        assert learning_rate(down, 1000, 1000) == pytest.approx(0.0, abs=1e-15)
        flat = LearningRate(schedule=schedule, peak=1.0, decay_tokens=500, final_fraction=1.0)
        assert learning_rate(flat, 1000, 1000) == 1.0


@st.composite
def schedules(draw: st.DrawFn) -> tuple[LearningRate, int, int]:
    """(schedule, tokens a step, steps) that `Phase` would accept."""
    step, steps = draw(st.integers(1, 5_000_000)), draw(st.integers(2, 400))
    total = step * steps
    warmup = draw(st.integers(0, total - 1))
    lr = LearningRate(
        schedule=draw(st.sampled_from(("wsd", "cosine"))),
        peak=draw(st.floats(1e-7, 10)),
        warmup_tokens=warmup,
        decay_tokens=draw(st.integers(0, total - warmup)),
        final_fraction=draw(st.floats(0, 1)),
    )
    return lr, step, steps


@given(schedules())
def test_schedule_never_exceeds_its_peak_and_ends_where_it_says(case: tuple[LearningRate, int, int]) -> None:
    lr, step, steps = case
    values = [learning_rate(lr, number * step, step * steps) for number in range(1, steps + 1)]
    assert all(0 < value <= lr.peak * (1 + 1e-12) for value in values[:-1])
    decays = lr.schedule == "cosine" or lr.decay_tokens > 0
    expected = lr.peak * (lr.final_fraction if decays else 1.0)
    assert values[-1] == pytest.approx(expected, rel=1e-9, abs=1e-18)


@given(schedules())
def test_schedule_rises_then_never_rises_again(case: tuple[LearningRate, int, int]) -> None:
    lr, step, steps = case
    total = step * steps
    for number in range(steps):
        before, after = (learning_rate(lr, tokens, total) for tokens in (number * step, (number + 1) * step))
        if (number + 1) * step <= lr.warmup_tokens:
            assert after > before
        elif number * step >= lr.warmup_tokens:
            assert after <= before * (1 + 1e-12)


@given(schedules())
def test_schedule_has_no_jump(case: tuple[LearningRate, int, int]) -> None:
    lr, step, steps = case
    total, fall = step * steps, lr.peak * (1 - lr.final_fraction)
    slopes = [lr.peak / lr.warmup_tokens if lr.warmup_tokens else 0.0]
    if lr.schedule == "cosine":
        slopes.append(math.pi / 2 * fall / (total - lr.warmup_tokens))
    elif lr.decay_tokens:
        slopes.append(fall / lr.decay_tokens)
    steepest = step * max(slopes)
    values = [learning_rate(lr, number * step, total) for number in range(steps + 1)]
    for before, after in itertools.pairwise(values):
        assert abs(after - before) <= steepest * (1 + 1e-9) + 1e-12 * lr.peak


@given(schedules(), st.randoms(use_true_random=False))
def test_schedule_depends_on_nothing_that_was_asked_before(
    case: tuple[LearningRate, int, int], order: random.Random
) -> None:
    lr, step, steps = case
    tokens = [number * step for number in range(1, steps + 1)]
    forward = {t: learning_rate(lr, t, step * steps) for t in tokens}
    order.shuffle(tokens)
    assert {t: learning_rate(lr, t, step * steps) for t in tokens} == forward


# -- position --------------------------------------------------------------------------------------------------------


def phase(number: int, tokens: int, tokens_per_step: int) -> Phase:
    lr = LearningRate(peak=1e-3)
    return Phase(name=f"p{number}", memory=True, tokens=tokens, tokens_per_step=tokens_per_step, lr=lr)


def slow_positions(phases: list[Phase], sequence_length: int) -> list[Position]:
    """The position after 0, 1, 2, … steps, by taking every step."""
    found, step, samples, tokens = [], 0, 0, 0
    for index, current in enumerate(phases):
        done, inside = 0, 0
        while done < current.tokens:
            found.append(Position(step, index, inside, samples, tokens))
            done += current.tokens_per_step
            tokens += current.tokens_per_step
            samples += current.tokens_per_step // sequence_length
            step, inside = step + 1, inside + 1
    return [*found, Position(step, len(phases), 0, samples, tokens)]


@given(
    st.integers(1, 64),
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 8)), min_size=1, max_size=4),
)
def test_position_equals_taking_every_step(sequence_length: int, shapes: list[tuple[int, int]]) -> None:
    phases = [phase(i, tokens, samples * sequence_length) for i, (tokens, samples) in enumerate(shapes)]
    expected = slow_positions(phases, sequence_length)
    assert [position(phases, sequence_length, step) for step in range(len(expected))] == expected


def test_phase_boundary_belongs_to_the_next_phase() -> None:
    phases = [phase(0, 100, 64), phase(1, 256, 128)]  # 2 steps (rounded up) and 2 steps
    assert position(phases, 64, 1) == Position(1, 0, 1, 1, 64)
    assert position(phases, 64, 2) == Position(2, 1, 0, 2, 128)
    assert position(phases, 64, 3) == Position(3, 1, 1, 4, 256)
    assert position(phases, 64, 4) == Position(4, 2, 0, 6, 384)
