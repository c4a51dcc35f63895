"""Choose each sample's source by a fixed, evenly spread pattern of sources, which repeats."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import DataError
from data_prep.suggest import did_you_mean

PERIOD = 4096
# Up to this many windows, a mix by size is exact: the pattern has each window of an epoch once.
EXACT_PERIOD = 65_536

Weights = Mapping[str, float]
Mix = Weights | Sequence[tuple[int, Weights | None]] | None
Int64 = NDArray[np.int64]


def quotas_of(weights: Sequence[float], period: int) -> Int64:
    """Returns the slots of each source, int64 [sources], by largest remainder; at least 1 for a weight above 0."""
    given = np.array(weights, dtype=np.float64)
    shares = given / given.max()  # divided by the largest, so that the sum of huge weights does not overflow
    exact = shares / shares.sum() * period
    quotas = np.where(given > 0, np.maximum(np.floor(exact), 1), 0).astype(np.int64)
    while (missing := period - int(quotas.sum())) > 0:
        order = np.argsort(quotas - exact, kind="stable")[:missing]
        quotas[order] += 1
    while quotas.sum() > period:
        # The minimum of 1 used too many slots: the sources furthest above their share lose some, but keep one.
        quotas[np.argmax(np.where(quotas > 1, quotas - exact, -np.inf))] -= 1
    return quotas


class Pattern:
    """A pattern of slots, `quotas` of each source, which golden-ratio steps spread evenly.

    source: int64 [period], each slot's source. rank: int64 [period], the number of earlier slots of that source.
    """

    def __init__(self, quotas: Int64) -> None:
        self.quotas = quotas
        self.period = int(quotas.sum())
        step = max(1, round(self.period * (math.sqrt(5) - 1) / 2))
        while math.gcd(step, self.period) != 1:
            step += 1
        values = np.arange(self.period, dtype=np.int64) * step % self.period
        self.source: Int64 = np.searchsorted(np.cumsum(quotas), values, side="right").astype(np.int64)
        by_source = np.argsort(self.source, kind="stable")
        starts = np.repeat(np.cumsum(quotas) - quotas, quotas)
        self.rank: Int64 = np.empty(self.period, dtype=np.int64)
        self.rank[by_source] = np.arange(self.period) - starts

    def counts(self, samples: int) -> Int64:
        """Returns how many of the first `samples` samples each source gives, int64 [sources]."""
        periods, rest = divmod(samples, self.period)
        return periods * self.quotas + np.bincount(self.source[:rest], minlength=len(self.quotas))


class MixSchedule:
    """Maps a sample number to its source and its number within the source; the mix may change at given samples.

    When the mix changes, a source continues where it was. A change affects no sample before it.
    """

    def __init__(self, mix: Mix, windows: Mapping[str, int], sequence_length: int) -> None:
        """windows: source name -> its number of windows of `sequence_length` + 1 tokens; the order numbers the sources.

        Raises:
            DataError: a source is unknown or empty, weights are unusable, or changes are not in order.
        """
        changes = [(0, mix)] if mix is None or isinstance(mix, Mapping) else list(mix)
        firsts = [first for first, _ in changes]
        if not changes or firsts[0] != 0 or any(b <= a for a, b in itertools.pairwise(firsts)):
            raise DataError(f"mix: changes start at samples {firsts}; the first must be 0 and the rest increase")
        self._firsts = np.array(firsts, dtype=np.int64)
        self._patterns = [_pattern(weights, windows, sequence_length) for _, weights in changes]
        self._before = [np.zeros(len(windows), dtype=np.int64)]
        for pattern, (first, last) in zip(self._patterns, itertools.pairwise(firsts), strict=False):
            self._before.append(self._before[-1] + pattern.counts(last - first))

    def locate(self, samples: Int64) -> tuple[Int64, Int64]:
        """Returns source and number within the source, int64 [n] each, of sample numbers int64 [n]."""
        source, number = np.empty_like(samples), np.empty_like(samples)
        change = np.searchsorted(self._firsts, samples, side="right") - 1
        for current in np.unique(change):
            here = change == current
            pattern = self._patterns[current]
            period, slot = np.divmod(samples[here] - self._firsts[current], pattern.period)
            chosen = pattern.source[slot]
            source[here] = chosen
            number[here] = self._before[current][chosen] + period * pattern.quotas[chosen] + pattern.rank[slot]
        return source, number

    def counts(self, samples: int) -> Int64:
        """Returns how many of the first `samples` samples each source gives, int64 [sources]."""
        change = int(np.searchsorted(self._firsts, samples, side="right")) - 1
        return self._before[change] + self._patterns[change].counts(samples - int(self._firsts[change]))


def _pattern(weights: Weights | None, windows: Mapping[str, int], sequence_length: int) -> Pattern:
    if weights is None:
        shares: list[float] = list(windows.values())
        period = min(sum(windows.values()), EXACT_PERIOD)
    else:
        _check_weights(weights, windows, sequence_length)
        shares = [weights.get(name, 0.0) for name in windows]
        period = PERIOD
    positive = sum(share > 0 for share in shares)
    return Pattern(quotas_of(shares, 1 if positive == 1 else max(period, positive)))


def _check_weights(weights: Weights, windows: Mapping[str, int], sequence_length: int) -> None:
    for name, weight in weights.items():
        if name not in windows:
            raise DataError(
                f"mix: there is no source {name!r}{did_you_mean(name, windows)}; use a source of the folder"
            )
        if not 0 <= weight < math.inf:
            raise DataError(f"mix: weight of {name!r} is {weight}; it must be a number of at least 0")
        if weight > 0 and not windows[name]:
            raise DataError(
                f"mix: {name!r} has weight {weight}, but no shard with {sequence_length + 1} tokens "
                f"(sequence_length {sequence_length}); lower sequence_length, add text or leave it out"
            )
    if not any(weights.values()):
        raise DataError(f"mix: all weights are 0 ({', '.join(weights) or 'none given'}); make one larger than 0")
