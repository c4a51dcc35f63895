"""Where the pipeline cuts the flat list of layers."""

from collections.abc import Sequence

from training.errors import ConfigError


def cut_stages(costs: Sequence[float], stages: int) -> list[int]:
    """Boundaries [0, ..., len(costs)] of the `stages` parts whose most expensive one costs least.

    Args: costs of the flat list (embedding, decoder layer x n, norm, head), as `model.cost.stage_costs` gives them.
    Every part holds at least one decoder layer; the embedding is in the first, norm and head are in the last.  Exact
    (dynamic programming); of equally good cuts one with small earlier parts, which hold more micro-batches in flight.
    Raises `ConfigError` when there are more stages than decoder layers.
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
    best = {0: (0.0, [0])}  # after some parts: end of the last one -> cost of the most expensive, boundaries
    for _ in range(stages - 1):
        best = {
            end: min(_extended(best[begin], before, end) for begin in best if begin < end)
            for end in range(max(2, min(best) + 1), layers + 1)
        }
    return min(_extended(found, before, len(costs)) for found in best.values())[1]


def _extended(found: tuple[float, list[int]], before: Sequence[float], end: int) -> tuple[float, list[int]]:
    """`found` and one more part up to `end`; `before`: cost of all layers before each boundary."""
    worst, cut = found
    return max(worst, before[end] - before[cut[-1]]), [*cut, end]
