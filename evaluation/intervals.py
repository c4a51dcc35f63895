"""Confidence intervals of a share of right answers."""

import math

Z95 = 1.959963984540054  # standard normal quantile of a two-sided 95 % interval


def wilson(right: int, samples: int, z: float = Z95) -> tuple[float, float]:
    """Return (low, high), Wilson's score interval of a proportion (E. B. Wilson 1927); (0, 1) without samples.

    It is valid near 0 and 1 too, and for few samples.
    """
    if samples == 0:
        return 0.0, 1.0
    share, z2 = right / samples, z * z / samples
    centre = (share + z2 / 2) / (1 + z2)
    reach = math.sqrt(share * (1 - share) * z2 + z2 * z2 / 4) / (1 + z2)
    low = 0.0 if right == 0 else max(0.0, centre - reach)
    return low, 1.0 if right == samples else min(1.0, centre + reach)
