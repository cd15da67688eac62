"""Sampling: the distribution asked for, and the same tokens for the same seed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import chdtrc

from headrace.runtime.backends.base import SamplingRows
from headrace.runtime.request import SamplingParameters
from headrace.runtime.sampling import choose, sample, sampling_rows, uniform

LOGITS = np.log(np.array([0.05, 0.4, 0.3, 0.2, 0.05], np.float32))


def counts(temperature: float, top_k: int, top_p: float, draws: int = 4000) -> list[int]:
    chosen = [choose(LOGITS, temperature, top_k, top_p, uniform(7, at)) for at in range(draws)]
    return [chosen.count(token) for token in range(len(LOGITS))]


def p_value(found: list[int], expected: list[float]) -> float:
    kept = [at for at, share in enumerate(expected) if share]
    assert all(found[at] == 0 for at in range(len(found)) if at not in kept)
    total = sum(found)
    statistic = sum((found[at] - total * expected[at]) ** 2 / (total * expected[at]) for at in kept)
    return float(chdtrc(len(kept) - 1, statistic))


def test_plain_sampling_follows_the_distribution() -> None:
    assert p_value(counts(1.0, 0, 1.0), [0.05, 0.4, 0.3, 0.2, 0.05]) > 0.001


def test_temperature_sharpens_the_distribution() -> None:
    squared = np.exp(LOGITS.astype(float)) ** 2
    assert p_value(counts(0.5, 0, 1.0), list(squared / squared.sum())) > 0.001


def test_top_k_keeps_the_largest() -> None:
    assert p_value(counts(1.0, 2, 1.0), [0, 4 / 7, 3 / 7, 0, 0]) > 0.001


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    assert p_value(counts(1.0, 0, 0.65), [0, 4 / 7, 3 / 7, 0, 0]) > 0.001


def test_top_p_keeps_at_least_one() -> None:
    assert counts(1.0, 0, 1e-6, draws=20)[1] == 20


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    rows = SamplingRows(*(np.zeros(1, kind) for kind in (np.float32, np.int32, "f4", "f4")))
    assert sample(np.array([[1, 3, 3, 2]], np.float32), rows).tokens.tolist() == [1]


def test_logprobs_are_of_the_untempered_distribution() -> None:
    parameters = SamplingParameters(temperature=0.2, seed=1)
    result = sample(LOGITS[None], sampling_rows([(parameters, 1, 0)]))
    np.testing.assert_allclose(result.logprobs[0], LOGITS[result.tokens[0]], atol=1e-6)


@given(seed=st.integers(-(2**70), 2**70), index=st.integers(0, 2**31))
def test_uniform_is_a_function_of_seed_and_index_inside_its_range(seed: int, index: int) -> None:
    assert 0 <= uniform(seed, index) < 1
    assert uniform(seed, index) == uniform(seed, index)


def test_uniform_looks_uniform_and_seeds_differ() -> None:
    draws = [uniform(seed, index) for seed in range(100) for index in range(100)]
    found = np.histogram(draws, bins=20, range=(0, 1))[0].tolist()
    assert p_value(found, [1 / 20] * 20) > 0.001
    assert len(set(draws)) > 9900
