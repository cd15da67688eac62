"""Sampling of the CPU backend against the sampler that defines it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.runtime import sampling
from headrace.runtime.backends import cpu
from headrace.runtime.backends.base import (
    Edits,
    Float32,
    KVLayout,
    Masks,
    Sampled,
    SamplingRows,
)
from headrace.runtime.backends.cpu._native import levels
from headrace.runtime.models.program import Embed, Logits
from tests.fakes.programs import flat_batch, greedy, program, tensor


def sample(logits: Float32, rows: SamplingRows, level: str = "") -> Sampled:
    """What the backend chooses where `logits` [samples, vocabulary] come out of the model."""
    vocabulary = logits.shape[1]
    identity = tensor(np.eye(vocabulary, dtype=np.float32))
    made = program([Embed("x", "table"), Logits("x", "identity")], {"x": vocabulary}, vocabulary)
    weights = {"table": tensor(logits), "identity": identity}
    backend = cpu.load(made, weights, KVLayout(1), 2, cpu.Options(level))
    return backend.run(flat_batch(range(len(logits)), rows))


@pytest.mark.parametrize("level", levels())
def test_greedy_takes_the_lowest_id_among_equals(level: str) -> None:
    logits = np.zeros((4, 2000), np.float32)
    logits[1, [1999, 1030, 1500]] = 3
    logits[2] = -5
    logits[3, 7:] = 1
    assert list(sample(logits, greedy(4), level).tokens) == [0, 1030, 0, 7]


def random_rows(random: np.random.Generator, samples: int, vocabulary: int) -> SamplingRows:
    """Rows that ask for everything there is, each with a chance."""
    asked = random.random(samples) < 0.3
    return SamplingRows(
        temperature=random.choice([0, 0.3, 1, 2], samples).astype(np.float32),
        top_k=random.choice([0, 1, 3, 50, 100_000], samples).astype(np.int32),
        top_p=random.choice([0.01, 0.5, 0.95, 1], samples).astype(np.float32),
        min_p=random.choice([0, 0, 0.01, 0.5, 1], samples).astype(np.float32),
        uniform=random.random(samples, np.float32),
        target=np.where(asked, random.integers(0, vocabulary, samples), -1).astype(np.int32),
        ranked=int(random.choice([0, 1, 5, 70, 5000])),
        edits=random_edits(random, samples, vocabulary) if random.random() < 0.5 else None,
        masks=random_masks(random, samples, vocabulary) if random.random() < 0.5 else None,
    )


def random_edits(random: np.random.Generator, samples: int, vocabulary: int) -> Edits:
    """Up to 9 edits a row, of tokens that differ."""
    counts = np.minimum(random.integers(0, 10, samples), vocabulary)
    tokens = [random.choice(vocabulary, count, replace=False) for count in counts]
    entries = int(counts.sum())
    return Edits(
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        tokens=np.concatenate(tokens).astype(np.int32),
        divisors=random.choice([0.5, 1, 1.5], entries).astype(np.float32),
        addends=random.choice([0, -2, 30, -np.inf], entries).astype(np.float32),
    )


def random_masks(random: np.random.Generator, samples: int, vocabulary: int) -> Masks:
    """Two masks, one of them of few tokens; some rows have none."""
    allowed = np.zeros((2, -(-vocabulary // 32) * 32), np.bool_)
    allowed[0, random.integers(0, vocabulary, 3)] = True
    allowed[1] = random.random(allowed.shape[1]) < 0.5
    words = np.packbits(allowed, axis=1, bitorder="little").view(np.uint32)
    return Masks(random.integers(-1, 2, samples).astype(np.int32), words)


@settings(max_examples=100)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.1, 1.0, 5.0, 40.0]),
    vocabulary=st.sampled_from([1, 5, 100, 3000]),
    level=st.sampled_from(levels()),
)
def test_choices_equal_the_obvious_sampler(
    seed: int, spread: float, vocabulary: int, level: str
) -> None:
    random = np.random.default_rng(seed)
    samples = 8
    logits = (random.standard_normal((samples, vocabulary)) * spread).astype(np.float32)
    logits[0] = np.round(logits[0])  # ties
    rows = random_rows(random, samples, vocabulary)
    actual, expected = sample(logits, rows, level), sampling.sample(logits, rows)
    assert list(actual.tokens) == list(expected.tokens)
    error = 1e-5 + 3e-7 * np.abs(logits).max()  # a log-probability is a difference of float32
    np.testing.assert_allclose(actual.logprobs, expected.logprobs, rtol=1e-5, atol=error)
    if not rows.ranked:
        assert actual.ranked_tokens is None
        return
    assert actual.ranked_tokens is not None
    assert actual.ranked_logprobs is not None
    assert expected.ranked_logprobs is not None
    np.testing.assert_array_equal(actual.ranked_tokens, expected.ranked_tokens)
    ranked = expected.ranked_logprobs
    np.testing.assert_allclose(actual.ranked_logprobs, ranked, rtol=1e-5, atol=error)


def test_a_row_that_may_choose_nothing_still_gives_a_token() -> None:
    logits = np.ones((2, 40), np.float32)
    rows = replace(
        greedy(2),
        temperature=np.array([0, 1], np.float32),
        masks=Masks(np.zeros(2, np.int32), np.zeros((1, 2), np.uint32)),
    )
    assert list(sample(logits, rows).tokens) == list(sampling.sample(logits, rows).tokens)


ZERO = np.zeros(1, np.int32)
ONE = np.ones(1, np.float32)
STARTS = np.array([0, 1], np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_p": -ONE}, r"sampling.min_p\[0\] is -1"),
        ({"min_p": 2 * ONE}, r"sampling.min_p\[0\] is 2, expected in \[0, 1\]"),
        ({"target": ZERO + 40}, r"sampling.target\[0\] is 40, expected -1 to 39"),
        ({"target": ZERO - 2}, r"sampling.target\[0\] is -2"),
        ({"ranked": -1}, "ranked must not be negative"),
        ({"edits": Edits(ZERO, ZERO, ONE, ONE)}, "edits.starts has 1 values, expected 2"),
        ({"edits": Edits(STARTS, ZERO + 40, ONE, ONE)}, r"edits.tokens\[0\] is 40"),
        ({"edits": Edits(STARTS, ZERO, 0 * ONE, ONE)}, r"edits.divisors\[0\] is 0"),
        ({"edits": Edits(STARTS, ZERO, ONE, np.inf * ONE)}, r"edits.addends\[0\]"),
        ({"edits": Edits(STARTS[::-1].copy(), ZERO, ONE, ONE)}, r"edits.starts\[0\] is 1"),
        ({"edits": Edits(2 * STARTS, ZERO, ONE, ONE)}, r"edits.starts\[1\] is 2"),
        ({"edits": Edits(STARTS, ZERO, ONE, ONE[:0])}, "edits.addends has 0 values"),
        ({"masks": Masks(ZERO + 1, np.ones((1, 2), np.uint32))}, r"masks.rows\[0\] is 1"),
        ({"masks": Masks(ZERO, np.ones((1, 1), np.uint32))}, "1 words a mask, expected 2"),
        ({"masks": Masks(ZERO, np.ones((1, 2), np.int32))}, "allowed: expected .* uint32"),
        ({"masks": Masks(ZERO[:0], np.ones((1, 2), np.uint32))}, "masks.rows has 0 values"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(np.ones((1, 40), np.float32), replace(greedy(1), **change))


def test_logits_that_are_no_numbers_still_give_a_token() -> None:
    logits = np.full((3, 300), np.nan, np.float32)
    logits[1, 5] = 1
    logits[2] = np.inf
    rows = SamplingRows(
        temperature=np.array([1, 1, 0.5], np.float32),
        top_k=np.array([0, 3, 0], np.int32),
        top_p=np.array([0.9, 1, 0.5], np.float32),
        min_p=np.zeros(3, np.float32),
        uniform=np.array([0.9, 0.5, 0.1], np.float32),
        target=np.full(3, -1, np.int32),
    )
    tokens = sample(logits, rows).tokens
    assert ((tokens >= 0) & (tokens < 300)).all()
