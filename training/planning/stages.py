"""Cuts the flat list of layers into pipeline stages."""

import math
from collections.abc import Sequence

from training.errors import ConfigError


def cut_stages(costs: Sequence[float], stages: int) -> list[int]:
    """Return the boundaries [0, ..., len(costs)] of the stages, such that the most expensive stage costs least.

    Every stage has at least one decoder layer; the embedding is in the first, norm and head are in the last. The result
    is exact (dynamic programming). Of equally good cuts it is one with small early stages, because these keep more
    micro-batches in flight.

    Args:
        costs: costs of the flat list (embedding, decoder layers, norm, head) from `model.cost.stage_costs`.
        stages: number of stages.

    Raises:
        ConfigError: there are more stages than decoder layers.
    """
    layers = len(costs) - 3
    if not 1 <= stages <= layers:
        raise ConfigError(
            f"parallel.pipeline: {stages} stages need at least one of the {layers} decoder layers each; "
            f"set parallel.pipeline to {layers} or less"
        )
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    best = {0: (0.0, [0])}  # end of the last stage so far -> (cost of the most expensive stage, boundaries)
    for _ in range(stages - 1):
        best = {end: _best_cut(best, before, end) for end in range(max(2, min(best) + 1), layers + 1)}
    return _best_cut(best, before, len(costs))[1]


def _best_cut(
    shorter: dict[int, tuple[float, list[int]]], before: Sequence[float], end: int
) -> tuple[float, list[int]]:
    """Return the best cut up to `end` that is one of `shorter` and one more stage.

    before: cost of all layers before each boundary.
    """
    best: tuple[float, list[int]] = (math.inf, [])
    for begin in reversed(shorter):  # ends in rising order
        if begin >= end:
            continue
        last = before[end] - before[begin]
        if last > best[0]:
            break  # a stage that begins earlier costs more
        worst, cut = shorter[begin]
        best = min(best, (max(worst, last), cut))
    return best[0], [*best[1], end]
