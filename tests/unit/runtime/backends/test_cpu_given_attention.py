"""Attention of given tokens' rows: in bfloat16 where the native backend has tiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.runtime.backends import cpu, reference
from headrace.runtime.backends.base import Batch, Float32, KVLayout, KVType
from headrace.runtime.backends.cpu._native import levels
from headrace.runtime.models.architecture import Rope
from headrace.runtime.models.program import Program
from headrace.runtime.weights.tensor import Tensor
from tests.fakes.programs import attention_program, ragged_batch, tensor

TOKENS = 50
BLOCKS = 30
tiles = pytest.mark.skipif("amx" not in levels(), reason="this processor has no tiles")

Made = tuple[Program, dict[str, Tensor]]


def attending(heads: int, kv_heads: int, size: int, **attention: Any) -> Made:
    """A program whose logits are what is attended to, with random values."""
    random = np.random.default_rng(heads * size)
    rope = Rope(tuple(float(x) for x in 10_000.0 ** -np.linspace(0, 1, size // 2)), False)
    made, weights = attention_program(heads, kv_heads, size, rope, **attention)
    weights["sinks"] = tensor(random.standard_normal((1, heads), np.float32))
    weights["table"] = tensor(random.standard_normal((TOKENS, made.buffers["qkv"]), np.float32))
    return made, weights


def step(spans: list[tuple[int, int]], tokens: list[list[int]], are_given: list[int]) -> Batch:
    """Rows (begin, count) of sequences whose tokens are `tokens`; their blocks are scattered."""
    tables = np.random.default_rng(1).permutation(3 * BLOCKS).astype(np.int32).reshape(3, BLOCKS)
    rows = [
        token
        for (begin, count), one in zip(spans, tokens, strict=True)
        for token in one[begin : begin + count]
    ]
    batch = ragged_batch(spans, tables[: len(spans)], KVLayout(3 * BLOCKS), rows)
    return replace(batch, given=np.array(are_given, np.int32))


def tokens_of(seed: int, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, TOKENS, count)]


def load(made: Made, threads: int = 2, dtype: KVType = "f16") -> cpu.CPUBackend:
    return cpu.load(*made, KVLayout(3 * BLOCKS, 32, dtype), threads, cpu.Options())


@tiles
@settings(max_examples=25)
@given(
    group=st.sampled_from([1, 2, 3, 4, 8]),
    kv_heads=st.integers(1, 3),
    size=st.sampled_from([32, 40, 64, 96, 128, 256]),
    count=st.one_of(st.integers(1, 40), st.integers(200, 700)),
    window=st.sampled_from([0, 0, 1, 33, 300]),
    cap=st.sampled_from([0.0, 0.0, 2.0]),
    sinks=st.sampled_from([None, "sinks"]),
    causal=st.sampled_from([True, True, False]),
    dtype=st.sampled_from(["f16", "f16", "int8"]),
)
def test_given_rows_attend_to_the_accuracy_of_bfloat16(
    group: int, kv_heads: int, size: int, count: int, dtype: KVType, **attention: Any
) -> None:
    made = attending(group * kv_heads, kv_heads, size, **attention)
    batch = step([(0, count)], [tokens_of(2, count)], [count])
    backend = load(made, 1 + count % 3, dtype)
    got = backend.logits(batch)
    backend.close()
    expected = reference.load(*made, KVLayout(3 * BLOCKS, 32, dtype), 1).logits(batch)
    assert np.abs(got - expected).max() < 0.06
    assert np.abs(got - expected).mean() < 3e-3


def in_steps(made: Made, steps: list[list[tuple[int, int]]], are_given: list[int]) -> list[Float32]:
    """What each sequence's rows attend to, its rows coming in `steps`."""
    backend = load(made)
    tokens = [tokens_of(index, 900) for index in range(len(steps[0]))]
    found: list[list[Float32]] = [[] for _ in tokens]
    for spans in steps:
        logits = backend.logits(step(spans, tokens, are_given))
        at = 0
        for index, (_, count) in enumerate(spans):
            found[index].append(logits[at : at + count])
            at += count
    backend.close()
    return [np.concatenate(parts) for parts in found]


@pytest.mark.parametrize("attention", [{}, {"window": 100}, {"cap": 5.0, "sinks": "sinks"}])
def test_a_row_is_the_same_to_the_last_bit_in_chunks_and_beside_others(
    attention: dict[str, Any],
) -> None:
    """Sequence 0 was given 600 tokens and chose 20, sequence 1 was given 40."""
    made = attending(9, 3, 64, **attention)
    given_tokens = [600, 40, 700]
    (alone,) = in_steps(made, [[(0, 620)]], given_tokens[:1])
    chunks = [[(0, 256)], [(256, 1)], [(257, 31)], [(288, 300)], [(588, 22)], [(610, 10)]]
    assert np.array_equal(in_steps(made, chunks, given_tokens[:1])[0], alone)
    beside = [[(0, 17), (0, 33), (0, 300)], [(17, 603), (33, 1), (300, 400)]]
    assert np.array_equal(in_steps(made, beside, given_tokens)[0], alone)


@tiles
def test_what_a_token_is_decides_how_its_row_attends() -> None:
    made = attending(9, 3, 64)
    ((given_all,), (chosen_all,), (mixed,)) = (
        in_steps(made, [[(0, 400)]], [count]) for count in (400, 0, 150)
    )
    assert np.array_equal(mixed[:150], given_all[:150])
    assert np.array_equal(mixed[150:], chosen_all[150:])
    assert not np.array_equal(given_all[150:], chosen_all[150:])


@tiles
def test_a_row_never_reads_stale_entries_of_its_blocks() -> None:
    made = attending(2, 1, 64)
    made[1]["table"] = tensor(
        np.vstack([np.ones((1, 256)), np.full((1, 256), np.nan)]).astype(np.float32)
    )
    backend = load(made)
    backend.logits(step([(0, 64)], [[1] * 64], [64]))
    clean = backend.logits(step([(0, 35)], [[0] * 35], [35]))
    backend.close()
    np.testing.assert_allclose(clean, np.ones((35, 128), np.float32), rtol=1e-2)
