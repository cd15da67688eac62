"""Means with 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct
from scipy.special import ndtri, stdtrit

CONFIDENCE = 0.95


class Estimate(Struct, frozen=True):
    """A mean over `n` values and the interval that holds the true one with 95% confidence.

    Without values all three are NaN; one value alone says nothing of its spread, so that the
    interval of a mean is then unbounded.
    """

    n: int
    mean: float
    low: float
    high: float


NOTHING = Estimate(0, math.nan, math.nan, math.nan)


def proportion(passed: int, n: int) -> Estimate:
    """The share of `n` trials that passed, with Wilson's score interval.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference". It stays
    within 0 and 1 and is not empty when all trials passed, as the normal interval would be.
    """
    if n == 0:
        return NOTHING
    z = float(ndtri(0.5 + CONFIDENCE / 2))
    share = passed / n
    scale = 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    low = 0.0 if passed == 0 else max(0.0, middle - half)
    high = 1.0 if passed == n else min(1.0, middle + half)
    return Estimate(n, share, low, high)


def mean(values: Sequence[float]) -> Estimate:
    """The mean of `values`, with Student's t interval."""
    n = len(values)
    if n == 0:
        return NOTHING
    middle = math.fsum(values) / n
    if n == 1:
        return Estimate(1, middle, -math.inf, math.inf)
    variance = math.fsum((value - middle) ** 2 for value in values) / (n - 1)
    half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * math.sqrt(variance / n)
    return Estimate(n, middle, middle - half, middle + half)
