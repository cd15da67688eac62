"""Sampling: the distribution asked for, and the same tokens for the same seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import chdtrc

from headrace.runtime.backends.base import Edits, Masks, SamplingRows
from headrace.runtime.sampling import sample, uniform

LOGITS = np.log(np.array([0.05, 0.4, 0.3, 0.2, 0.05], np.float32))


def rows(
    draws: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    **more: Any,
) -> SamplingRows:
    """Rows that all ask for the same, each with a random number of its own."""
    return SamplingRows(
        temperature=np.full(draws, temperature, np.float32),
        top_k=np.full(draws, top_k, np.int32),
        top_p=np.full(draws, top_p, np.float32),
        min_p=np.full(draws, min_p, np.float32),
        uniform=np.array([uniform(7, at) for at in range(draws)], np.float32),
        target=np.full(draws, -1, np.int32),
        **more,
    )


def counts(asked: SamplingRows) -> list[int]:
    """How often each token was chosen."""
    chosen = sample(np.tile(LOGITS, (len(asked.uniform), 1)), asked).tokens.tolist()
    return [chosen.count(token) for token in range(len(LOGITS))]


def p_value(found: list[int], expected: list[float]) -> float:
    kept = [at for at, share in enumerate(expected) if share]
    assert all(found[at] == 0 for at in range(len(found)) if at not in kept)
    total = sum(found)
    statistic = sum((found[at] - total * expected[at]) ** 2 / (total * expected[at]) for at in kept)
    return float(chdtrc(len(kept) - 1, statistic))


def test_plain_sampling_follows_the_distribution() -> None:
    assert p_value(counts(rows(4000)), [0.05, 0.4, 0.3, 0.2, 0.05]) > 0.001


def test_temperature_sharpens_the_distribution() -> None:
    squared = np.exp(LOGITS.astype(float)) ** 2
    assert p_value(counts(rows(4000, temperature=0.5)), list(squared / squared.sum())) > 0.001


def test_top_k_keeps_the_largest() -> None:
    assert p_value(counts(rows(4000, top_k=2)), [0, 4 / 7, 3 / 7, 0, 0]) > 0.001


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    assert p_value(counts(rows(4000, top_p=0.65)), [0, 4 / 7, 3 / 7, 0, 0]) > 0.001


def test_top_p_keeps_at_least_one() -> None:
    assert counts(rows(20, top_p=1e-6))[1] == 20


def test_min_p_keeps_what_is_likely_enough_beside_the_best() -> None:
    assert p_value(counts(rows(4000, min_p=0.6)), [0, 4 / 7, 3 / 7, 0, 0]) > 0.001
    assert counts(rows(20, min_p=1.0))[1] == 20


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    chosen = sample(np.array([[1, 3, 3, 2]], np.float32), rows(1, temperature=0))
    assert chosen.tokens.tolist() == [1]


def edits(divisor: float, addend: float) -> Edits:
    """One edit, of the most likely token."""
    return Edits(
        starts=np.array([0, 1], np.int32),
        tokens=np.array([1], np.int32),
        divisors=np.array([divisor], np.float32),
        addends=np.array([addend], np.float32),
    )


@pytest.mark.parametrize(
    ("divisor", "addend", "expected"), [(1.0, -9.0, 2), (1.0, -np.inf, 2), (1.0, 0.0, 1)]
)
def test_an_edit_changes_what_is_chosen_and_not_its_logprob(
    divisor: float, addend: float, expected: int
) -> None:
    chosen = sample(LOGITS[None], rows(1, temperature=0, edits=edits(divisor, addend)))
    assert chosen.tokens.tolist() == [expected]
    np.testing.assert_allclose(chosen.logprobs[0], LOGITS[expected], atol=1e-6)


def test_a_divisor_lowers_a_logit_of_either_sign() -> None:
    for logits in (np.array([[1.0, 2.0]], np.float32), np.array([[-2.0, -1.0]], np.float32)):
        assert sample(logits, rows(1, temperature=0, edits=edits(4.0, 0.0))).tokens[0] == 0


def test_a_mask_forbids_all_but_its_tokens() -> None:
    masks = Masks(np.array([0, -1], np.int32), np.array([[0b10001]], np.uint32))
    asked = rows(2, temperature=0, masks=masks)
    assert sample(np.tile(LOGITS, (2, 1)), asked).tokens.tolist() == [0, 1]


def test_a_target_is_scored_and_not_chosen() -> None:
    asked = replace(rows(1), target=np.array([3], np.int32))
    scored = sample(LOGITS[None], asked)
    assert scored.tokens.tolist() == [3]
    np.testing.assert_allclose(scored.logprobs, np.log([0.2]), atol=1e-6)


def test_the_most_likely_tokens_come_in_order() -> None:
    chosen = sample(LOGITS[None], rows(1, temperature=0.2, ranked=3))
    assert chosen.ranked_tokens is not None
    assert chosen.ranked_logprobs is not None
    assert chosen.ranked_tokens.tolist() == [[1, 2, 3]]
    np.testing.assert_allclose(chosen.ranked_logprobs, np.log([[0.4, 0.3, 0.2]]), atol=1e-6)
    np.testing.assert_allclose(chosen.logprobs[0], LOGITS[chosen.tokens[0]], atol=1e-6)


@given(seed=st.integers(-(2**70), 2**70), index=st.integers(0, 2**31))
def test_uniform_is_a_function_of_seed_and_index_inside_its_range(seed: int, index: int) -> None:
    assert 0 <= uniform(seed, index) < 1
    assert uniform(seed, index) == uniform(seed, index)


def test_uniform_looks_uniform_and_seeds_differ() -> None:
    draws = [uniform(seed, index) for seed in range(100) for index in range(100)]
    found = np.histogram(draws, bins=20, range=(0, 1))[0].tolist()
    assert p_value(found, [1 / 20] * 20) > 0.001
    assert len(set(draws)) > 9900


def test_a_large_vocabulary_is_sampled_as_a_small_one() -> None:
    draws = np.random.default_rng(0)
    for spread in (0.0, 0.5, 3.0):
        logits = (draws.standard_normal((1, 20_000)) * spread).astype(np.float32)
        order = np.argsort(-logits[0], kind="stable")
        whole = np.cumsum(np.exp(logits[0, order].astype(np.float64)))
        for at in (0.0, 0.3, 0.9, 0.999):
            asked = replace(rows(1), uniform=np.array([at], np.float32))
            place = int(np.searchsorted(whole, asked.uniform[0] * whole[-1], side="right"))
            assert (
                abs(int(np.flatnonzero(order == sample(logits, asked).tokens[0])[0]) - place) <= 1
            )
            cut = replace(asked, top_p=np.array([0.5], np.float32))
            half = whole[np.searchsorted(whole, 0.5 * whole[-1])]
            place = int(np.searchsorted(whole, asked.uniform[0] * half, side="right"))
            assert abs(int(np.flatnonzero(order == sample(logits, cut).tokens[0])[0]) - place) <= 1
