"""Sampling: the arrays a backend samples with, and the obvious sampler that defines them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .backends.base import Float32, Sampled, SamplingRows
from .request import SamplingParameters

MASK = (1 << 64) - 1


def uniform(seed: int, index: int) -> float:
    """The random number of a request's output token `index`, in [0, 1), 24 bits.

    A hash of (seed, index), not a stream: the same seed gives the same tokens whatever else is in
    the batch, also after a preemption. The mixer is SplitMix64's finaliser (Steele, Lea, Flood
    2014), applied to seed and index in turn.
    """
    return (mix(mix(seed & MASK) ^ index) >> 40) / (1 << 24)


def mix(value: int) -> int:
    """SplitMix64: one step and the finaliser."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def sampling_rows(rows: Sequence[tuple[SamplingParameters, int, int]]) -> SamplingRows:
    """Arrays for the sampled rows of a step, each (parameters, seed, index of its output token)."""
    return SamplingRows(
        temperature=np.array([asked.temperature for asked, _, _ in rows], np.float32),
        top_k=np.array([asked.top_k for asked, _, _ in rows], np.int32),
        top_p=np.array([asked.top_p for asked, _, _ in rows], np.float32),
        uniform=np.array([uniform(seed, index) for _, seed, index in rows], np.float32),
    )


def sample(logits: Float32, rows: SamplingRows) -> Sampled:
    """Choose a token for each row of logits [samples, vocabulary], as `SamplingRows` defines it."""
    tokens = np.array(
        [
            choose(logits[row], float(rows.temperature[row]), int(rows.top_k[row]),
                   float(rows.top_p[row]), float(rows.uniform[row]))
            for row in range(len(logits))
        ],
        np.int32,
    )  # fmt: skip
    peak = logits.max(axis=1, keepdims=True)
    normaliser = peak[:, 0] + np.log(np.exp(logits - peak).sum(axis=1))
    chosen = np.take_along_axis(logits, tokens[:, None].astype(np.int64), axis=1)[:, 0]
    return Sampled(tokens, (chosen - normaliser).astype(np.float32))


def choose(logits: Float32, temperature: float, top_k: int, top_p: float, uniform: float) -> int:
    """One row's token."""
    if temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")  # ties by ascending id
    if top_k:
        order = order[:top_k]
    scaled = (logits[order] - logits[order[0]]) / temperature
    probabilities = np.exp(scaled.astype(np.float64))
    cumulative = np.cumsum(probabilities)
    if top_p < 1:
        # the smallest set that reaches top_p, never empty
        kept = int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1
        cumulative = cumulative[:kept]
    place = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(order[min(place, len(cumulative) - 1)])
