"""Batches for tests that ask a backend for logits."""

from __future__ import annotations

from collections.abc import Sequence as Several
from unittest.mock import sentinel

from headrace.runtime.backends.base import Batch
from headrace.runtime.kvcache import BlockPool
from headrace.runtime.plan import plan_batch
from headrace.runtime.request import SamplingParameters
from headrace.runtime.scheduler import Span
from headrace.runtime.sequence import Sequence

GREEDY = SamplingParameters(temperature=0)


def new_sequence(tokens: Several[int], sampling: SamplingParameters = GREEDY) -> Sequence:
    """A sequence that no engine watches: nobody reads its text."""
    return Sequence(
        id="test",
        tokens=list(tokens),
        prompt_tokens=len(tokens),
        limit=10_000,
        sampling=sampling,
        seed=0,
        salt=b"",
        end_tokens=(),
        counts=None,
        detokenizer=sentinel.nobody,
        stops=sentinel.nobody,
        arrived=0.0,
    )


def whole_prompt(tokens: Several[int], pool: BlockPool) -> Batch:
    """One step over all of `tokens`; blocks are taken from the pool and not given back."""
    sequence = new_sequence(tokens)
    if not pool.grow(sequence.table, len(tokens)):
        raise MemoryError(f"{len(tokens)} tokens do not fit the pool")
    return plan_batch([Span.of(sequence, len(tokens))], pool.block_size)
