"""Learning rate and position of a run, as pure functions of tokens and steps.

Neither is stored, so a resumed run computes the same values as an uninterrupted one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from training.config import LearningRate, Phase


def learning_rate(lr: LearningRate, tokens: int, total: int) -> float:
    """Return the learning rate of the step that ends `tokens` tokens into a phase of `total` tokens.

    Warmup is linear from 0. wsd then holds the peak and decays linearly over the last `decay_tokens`; cosine decays
    from the end of the warmup to the end of the phase. Both end at peak * final_fraction.
    """
    if tokens < lr.warmup_tokens:
        return lr.peak * tokens / lr.warmup_tokens
    floor = lr.peak * lr.final_fraction
    if lr.schedule == "cosine":
        done = min(1.0, (tokens - lr.warmup_tokens) / max(1, total - lr.warmup_tokens))
        return floor + (lr.peak - floor) * 0.5 * (1 + math.cos(math.pi * done))
    if not lr.decay_tokens:
        return lr.peak
    left = min(1.0, max(0.0, (total - tokens) / lr.decay_tokens))
    return floor + (lr.peak - floor) * left


@dataclass(frozen=True)
class Position:
    """The position of a run after `step` optimizer steps, computed from the list of phases."""

    step: int
    phase_index: int  # of the phase that the NEXT step belongs to; len(phases) when the run is finished
    phase_step: int  # steps already done in that phase
    samples: int  # seen so far by all ranks: the stream's position
    tokens: int  # seen so far by all ranks


def position(phases: Sequence[Phase], sequence_length: int, step: int) -> Position:
    """Return the position after `step` steps; sequence_length: tokens of a sample."""
    left, tokens = step, 0
    for index, phase in enumerate(phases):
        if left < phase.steps:
            tokens += left * phase.tokens_per_step
            return Position(step, index, left, tokens // sequence_length, tokens)
        left -= phase.steps
        tokens += phase.steps * phase.tokens_per_step
    return Position(step, len(phases), 0, tokens // sequence_length, tokens)
