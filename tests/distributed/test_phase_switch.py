"""The switch from the warmup to the memory phase under ZeRO 3, whose second engine traces the modules anew."""

import pytest

from tests.distributed.parity import Cell, compare, holds, run


@pytest.mark.parametrize("kind", ["delta", "lm2"])
def test_zero_3_goes_through_both_phases_as_one_rank_does(kind: str) -> None:
    found, expected = run(Cell(kind, False, data=2, zero=3)), run(Cell(kind, False))
    difference = compare(found, expected)
    assert holds(difference), difference
