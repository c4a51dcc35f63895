"""How every benchmark ends: one JSON line a claim."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def claim(name: str, value: float | None, goal: str, met: bool | None) -> dict[str, Any]:
    """Print `{"claim", "value", "goal", "met"}`, and return it; met is None where the device is missing."""
    line = {"claim": name, "value": None if value is None else round(value, 3), "goal": goal, "met": met}
    print(json.dumps(line))
    return line


def interleaved_seconds(contestants: Sequence[Callable[[], object]], rounds: int = 7) -> list[float]:
    """Median seconds of each contestant, measured in turns so that a disturbance hits all of them."""
    for contestant in contestants:
        contestant()
    seconds: list[list[float]] = [[] for _ in contestants]
    for _ in range(rounds):
        for measured, contestant in zip(seconds, contestants, strict=True):
            started = time.perf_counter()
            contestant()
            measured.append(time.perf_counter() - started)
    return [statistics.median(measured) for measured in seconds]
