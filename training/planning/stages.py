"""Cuts the flat list of layers into pipeline stages."""

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
        best = {
            end: min(_extended(best[begin], before, end) for begin in best if begin < end)
            for end in range(max(2, min(best) + 1), layers + 1)
        }
    return min(_extended(found, before, len(costs)) for found in best.values())[1]


def _extended(found: tuple[float, list[int]], before: Sequence[float], end: int) -> tuple[float, list[int]]:
    """Return the cut `found` with one more stage up to `end`; before: cost of all layers before each boundary."""
    worst, cut = found
    return max(worst, before[end] - before[cut[-1]]), [*cut, end]
