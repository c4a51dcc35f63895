"""The driver's scenarios with small numbers; `make faults` runs them with the numbers that are promised."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tests.e2e import faults
from tests.e2e.faults import Bench

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(tmp_path: Path, prepared_data: Path) -> Bench:
    return Bench(tmp_path, prepared_data, random.Random(1), Console(soft_wrap=True))


@pytest.mark.parametrize("scenario, count", [(faults.kills, 3), (faults.damage, 4)])
def test_survives(bench: Bench, scenario: Callable[[Bench, int, list[bool]], None], count: int) -> None:
    claims: list[bool] = []
    scenario(bench, count, claims)
    assert claims == [True, True]


@pytest.mark.parametrize("scenario", [faults.signals, faults.reshard, faults.bad_losses, faults.hangs, faults.machines])
def test_holds(bench: Bench, scenario: Callable[[Bench, list[bool]], None]) -> None:
    claims: list[bool] = []
    scenario(bench, claims)
    assert claims
    assert all(claims)
