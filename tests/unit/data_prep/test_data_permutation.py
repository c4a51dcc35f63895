"""The keyed permutation: a bijection for every size and key, the same for scalars and arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.stream.permutation import permute

keys = st.integers(0, 2**64 - 1)


@given(n=st.integers(1, 3000), key=keys)
def test_every_position_is_reached_once(n: int, key: int) -> None:
    image = permute(np.arange(n), n, key)
    assert image.dtype == np.int64
    assert np.array_equal(np.sort(image), np.arange(n))


@given(n=st.integers(1, 2**62 - 1), key=keys, data=st.data())
def test_scalars_equal_arrays_and_stay_in_range(n: int, key: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True))
    image = permute(np.array(indices), n, key)
    assert [permute(index, n, key) for index in indices] == image.tolist()
    assert len(set(image.tolist())) == len(indices)
    assert 0 <= image.min() <= image.max() < n


def test_shape_is_kept() -> None:
    assert permute(np.arange(6).reshape(2, 3), 6, 1).shape == (2, 3)


def test_order_looks_random_and_depends_on_the_key() -> None:
    n = 10_000
    first, second = permute(np.arange(n), n, 1), permute(np.arange(n), n, 2)
    assert abs(np.corrcoef(first, np.arange(n))[0, 1]) < 0.05
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
    # Neighbours must not stay neighbours: a random permutation keeps about 2 of the n - 1 steps of 1.
    assert np.count_nonzero(np.abs(np.diff(first)) == 1) < 20


@pytest.mark.parametrize("n", [2, 3, 4])
def test_tiny_sizes_reach_every_order(n: int) -> None:
    orders = {tuple(permute(np.arange(n), n, key).tolist()) for key in range(2000)}
    assert len(orders) == {2: 2, 3: 6, 4: 24}[n]


@pytest.mark.parametrize(("index", "n"), [(5, 5), (-1, 5), (0, 0), (0, 2**62)])
def test_out_of_range_is_refused(index: int, n: int) -> None:
    with pytest.raises(ValueError, match=r"n is|must stay in"):
        permute(index, n, 0)
