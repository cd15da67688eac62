from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from headrace.evaluation.statistics import mean, proportion


@pytest.mark.parametrize("n", [1, 2, 10, 57, 10_000])
def test_the_interval_of_a_share_is_wilsons(n: int) -> None:
    for passed in {0, 1, n // 3, n - 1, n}:
        expected = stats.binomtest(passed, n).proportion_ci(0.95, method="wilson")
        found = proportion(passed, n)
        assert found.mean == passed / n
        assert found.low == pytest.approx(expected.low, abs=1e-12)
        assert found.high == pytest.approx(expected.high, abs=1e-12)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_the_interval_of_a_mean_is_students(values: list[float]) -> None:
    found = mean(values)
    spread = stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=found.mean, scale=spread or 1e-300)
    assert found.mean == pytest.approx(math.fsum(values) / len(values))
    assert found.low == pytest.approx(low, rel=1e-6, abs=1e-6)
    assert found.high == pytest.approx(high, rel=1e-6, abs=1e-6)


def test_one_value_says_nothing_of_the_spread() -> None:
    found = mean([2.0])
    assert (found.mean, found.low, found.high) == (2.0, -math.inf, math.inf)


def test_nothing_has_no_mean() -> None:
    assert proportion(0, 0).n == 0
    assert math.isnan(proportion(0, 0).mean)
    assert math.isnan(mean([]).mean)
