"""Sampling: the obvious sampler that defines what `backends.base.SamplingRows` asks for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .backends.base import Float32, Int32, Sampled, SamplingRows

MASK = (1 << 64) - 1
HEAD = 1024  # most likely tokens that are looked at first: the choice is nearly always among them


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


def sample(logits: Float32, rows: SamplingRows) -> Sampled:
    """Choose a token for each row of logits [samples, vocabulary]."""
    edited = mask(edit(logits, rows), rows)
    tokens = np.array([choose(edited[row], rows, row) for row in range(len(logits))], np.int32)
    tokens = np.where(rows.target >= 0, rows.target, tokens).astype(np.int32)
    peak = logits.max(axis=1, keepdims=True)
    normaliser = peak + np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
    logprobs = take(logits, tokens[:, None]) - normaliser
    if not rows.ranked:
        return Sampled(tokens, logprobs[:, 0])
    ranked = np.argsort(-logits, axis=1, kind="stable")[:, : rows.ranked].astype(np.int32)
    return Sampled(tokens, logprobs[:, 0], ranked, take(logits, ranked) - normaliser)


def take(logits: Float32, tokens: Int32) -> Float32:
    """The logits of tokens [samples, n]."""
    return np.take_along_axis(logits, tokens.astype(np.int64), axis=1)


def edit(logits: Float32, rows: SamplingRows) -> Float32:
    """The logits with the rows' edits, in a copy where there are any."""
    edits = rows.edits
    if edits is None:
        return logits
    edited = logits.copy()
    entries = np.repeat(np.arange(len(logits)), np.diff(edits.starts))
    found = logits[entries, edits.tokens]
    changed = np.where(found > 0, found / edits.divisors, found * edits.divisors) + edits.addends
    edited[entries, edits.tokens] = changed
    return edited


def mask(logits: Float32, rows: SamplingRows) -> Float32:
    """The logits with those that a grammar forbids at -inf."""
    masks = rows.masks
    if masks is None:
        return logits
    size = logits.shape[1]
    allowed = np.unpackbits(masks.allowed.view(np.uint8), axis=1, count=size, bitorder="little")
    held = np.flatnonzero(masks.rows >= 0)
    masked = logits.copy()
    masked[held] = np.where(allowed[masks.rows[held]], logits[held], -np.inf)
    return masked


def choose(logits: Float32, rows: SamplingRows, row: int) -> int:
    """One row's token."""
    if rows.temperature[row] == 0:
        return int(logits.argmax())
    there = np.flatnonzero(logits > -np.inf)
    if not len(there):
        return 0  # nothing is allowed: whoever forbade it all sees what is wrong
    found = None
    if len(there) > 4 * HEAD:
        found = pick(logits[there], HEAD, rows, row)
    if found is None:
        found = pick(logits[there], len(there), rows, row)
    return int(there[found or 0])


def likeliest(logits: Float32, count: int) -> NDArray[np.int64]:
    """Places of the `count` largest and those equal to the last; descending, ties ascending."""
    if count >= len(logits):
        return np.argsort(-logits, kind="stable")
    likely = np.flatnonzero(logits >= np.partition(logits, -count)[-count])
    return likely[np.argsort(-logits[likely], kind="stable")]


def pick(logits: Float32, count: int, rows: SamplingRows, row: int) -> int | None:
    """The place of the row's choice; None where it is not among the `count` most likely."""
    order = likeliest(logits, count)
    peak, temperature = logits[order[0]], rows.temperature[row]
    complete = len(order) == len(logits)
    if rows.top_k[row]:
        complete = complete or len(order) >= rows.top_k[row]
        order = order[: rows.top_k[row]]
    probabilities = np.exp(((logits[order] - peak) / temperature).astype(np.float64))
    cumulative = np.cumsum(probabilities)
    total = cumulative[-1]
    if not complete:
        total = np.exp(((logits - peak) / temperature).astype(np.float64)).sum()
    if rows.top_p[row] < 1:
        # the smallest set that reaches top_p, never empty
        kept = int(np.searchsorted(cumulative, rows.top_p[row] * total)) + 1
        if kept > len(cumulative) and not complete:
            return None
        cumulative, complete = cumulative[:kept], True
        total = cumulative[-1]
    if rows.min_p[row] > 0:
        likely = int((probabilities >= rows.min_p[row]).sum())  # the first is 1
        if likely == len(probabilities) and not complete:
            return None
        cumulative, complete = cumulative[:likely], True
        total = cumulative[-1]
    place = int(np.searchsorted(cumulative, rows.uniform[row] * total, side="right"))
    if place >= len(cumulative) and not complete:
        return None
    return int(order[min(place, len(cumulative) - 1)])
