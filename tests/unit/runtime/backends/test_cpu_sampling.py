"""Sampling of the CPU backend against the sampler that defines it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.runtime import sampling
from headrace.runtime.backends import cpu
from headrace.runtime.backends.base import Float32, KVLayout, Sampled, SamplingRows
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


@settings(max_examples=40)
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
    rows = SamplingRows(
        temperature=random.choice([0, 0.3, 1, 2], samples).astype(np.float32),
        top_k=random.choice([0, 1, 3, 50, 100_000], samples).astype(np.int32),
        top_p=random.choice([0.01, 0.5, 0.95, 1], samples).astype(np.float32),
        min_p=np.zeros(samples, np.float32),
        uniform=random.random(samples, np.float32),
        target=np.full(samples, -1, np.int32),
    )
    actual, expected = sample(logits, rows, level), sampling.sample(logits, rows)
    assert list(actual.tokens) == list(expected.tokens)
    np.testing.assert_allclose(actual.logprobs, expected.logprobs, rtol=1e-5, atol=1e-5)


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
