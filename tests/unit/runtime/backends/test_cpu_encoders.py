"""What encoders have beside decoders, on the CPU backend, against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.runtime.backends import cpu, reference
from headrace.runtime.backends.base import Batch, KVLayout
from headrace.runtime.backends.cpu._native import levels
from headrace.runtime.models.architecture import Activation, Pooling
from headrace.runtime.models.program import (
    Activate,
    AddEmbedding,
    Embed,
    Linear,
    Norm,
    Op,
    Pool,
    Result,
)
from tests.fakes.programs import program, ragged_batch, random_tensor

KV = KVLayout(16, 32)
ROWS, OFFSET = 40, 2
ACTIVATIONS = [one for one in get_args(Activation) if one != "clamped_silu"]


def batch_of(lengths: list[int]) -> Batch:
    """Whole texts of random tokens and types."""
    random = np.random.default_rng(3)
    tables = np.arange(len(lengths), dtype=np.int32)[:, None]
    tokens = list(random.integers(0, ROWS, sum(lengths)))
    made = ragged_batch([(0, length) for length in lengths], tables, KV, tokens)
    return replace(
        made,
        types=random.integers(0, 2, sum(lengths)).astype(np.int32),
        sampled_rows=np.empty(0, np.int32),
    )


def check(level: str, lengths: list[int], width: int, ops: list[Op], weights: str) -> None:
    """The same results [sequences, width] by both backends."""
    random = np.random.default_rng(1)
    shapes = {"table": (ROWS, width), "positions": (ROWS, width), "types": (2, width)}
    shapes |= {"scale": (1, width), "bias": (1, width), "square": (width, width)}
    made = program(
        [
            Embed("x", "table"),
            AddEmbedding("x", "positions", "position", OFFSET),
            AddEmbedding("x", "types", "type"),
            *ops,
            Result("result"),
        ],
        {"x": width, "y": width, "z": width, "result": width},
        width,
    )
    tensors = {
        name: random_tensor(random, weights if name == "square" else "F32", *shape)
        for name, shape in shapes.items()
    }
    batch = batch_of(lengths)
    backend = cpu.load(made, tensors, KV, 2, cpu.Options(level, precise=True))
    expected = reference.load(made, tensors, KV, 1).logits(batch)
    np.testing.assert_allclose(backend.logits(batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("pooling", get_args(Pooling))
@given(
    lengths=st.lists(st.integers(1, 32), min_size=1, max_size=9),
    width=st.sampled_from([1, 15, 32, 100]),
    activation=st.sampled_from(ACTIVATIONS),
)
@settings(max_examples=25, deadline=None)
def test_texts_of_any_lengths(
    level: str, pooling: Pooling, lengths: list[int], width: int, activation: Activation
) -> None:
    norms: list[Op] = [
        Norm("y", "x", "scale", 1e-5, kind="layer"),
        Norm("z", "x", "scale", 1e-5, add="y", add_scale=0.5, kind="layer", bias="bias"),
        Activate("y", "z", activation),
        Pool("result", "y", pooling),
    ]
    check(level, lengths, width, norms, "F32")


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("weights", ["F32", "BF16", "Q8_0"])
def test_a_head_over_what_was_pooled(level: str, weights: str) -> None:
    ops: list[Op] = [
        Pool("y", "x", "mean"),
        Linear("z", "y", ("square",), ("bias",)),
        Activate("y", "z", "tanh"),
        Norm("result", "y", "scale", 1e-5, kind="layer"),
    ]
    check(level, [3, 1, 32, 7], 64, ops, weights)


def loaded(level: str = "") -> cpu.CPUBackend:
    """A backend of positions up to 37."""
    ops: list[Op] = [
        Embed("x", "table"),
        AddEmbedding("x", "table", "position", OFFSET),
        AddEmbedding("x", "types", "type"),
        Pool("y", "x", "mean"),
        Result("y"),
    ]
    random = np.random.default_rng(1)
    weights = {
        "table": random_tensor(random, "F32", ROWS, 8),
        "types": random_tensor(random, "F32", 2, 8),
    }
    return cpu.load(program(ops, {"x": 8, "y": 8}, 8), weights, KV, 1, cpu.Options(level))


def test_a_position_type_or_text_that_is_not_there_is_refused_by_field() -> None:
    backend = loaded()
    tables = np.array([[0, 1]], np.int32)
    long = ragged_batch([(0, 39)], tables, KV, [1] * 39)
    with pytest.raises(ValueError, match=r"positions\[38\] is 38, expected 0 to 37"):
        backend.logits(long)
    with pytest.raises(ValueError, match=r"types\[0\] is 2, expected 0 to 1"):
        backend.logits(replace(batch_of([3]), types=np.full(3, 2, np.int32)))
    with pytest.raises(ValueError, match="types has 2 values, expected 3"):
        backend.logits(replace(batch_of([3]), types=np.zeros(2, np.int32)))
    empty = replace(
        batch_of([7]),
        row_starts=np.array([0, 7, 7], np.int32),
        context_lengths=np.array([7, 7], np.int32),
        block_tables=np.zeros((2, 1), np.int32),
    )
    with pytest.raises(
        ValueError, match=r"row_starts\[2\] is 7, expected a row for every sequence"
    ):
        backend.logits(empty)


def test_a_result_that_is_no_row_a_sequence_is_refused() -> None:
    weights = {"table": random_tensor(np.random.default_rng(1), "F32", ROWS, 8)}
    with pytest.raises(ValueError, match="no row a sequence"):
        cpu.load(program([Embed("x", "table"), Result("x")], {"x": 8}, 8), weights, KV, 1)
    mixed: list[Op] = [Embed("x", "table"), Pool("y", "x", "last"), Activate("x", "y", "relu")]
    with pytest.raises(ValueError, match="a row a sequence there"):
        cpu.load(
            program([*mixed, Activate("y", "x", "relu"), Result("y")], {"x": 8, "y": 8}, 8),
            weights,
            KV,
            1,
        )
