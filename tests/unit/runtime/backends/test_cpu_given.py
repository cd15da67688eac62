"""Rows of given tokens, which the native backend multiplies in bfloat16 where it has tiles."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.runtime.backends import cpu, reference
from headrace.runtime.backends.base import Float32, KVLayout
from headrace.runtime.backends.cpu._native import levels
from headrace.runtime.models.program import Embed, GateMultiply, Linear, Logits, Program
from headrace.runtime.weights.tensor import FORMATS, Tensor
from tests.fakes.programs import flat_batch, linear_program, program, random_tensor, tensor

KV = KVLayout(1, 32)
FORMATS_OF_32 = [name for name, (values, _) in FORMATS.items() if values <= 32]
tiles = pytest.mark.skipif("amx" not in levels(), reason="this processor has no tiles")


def run(
    made: Program,
    weights: dict[str, Tensor],
    table: Float32,
    are_given: list[bool],
    threads: int = 2,
) -> Float32:
    """Logits of every row of `table`, a sequence of one token each."""
    backend = cpu.load(made, {**weights, "table": tensor(table)}, KV, threads, cpu.Options())
    batch = replace(flat_batch(range(len(table))), given=np.array(are_given, np.int32))
    logits = backend.logits(batch)
    backend.close()
    return logits


def in_brains(values: Float32) -> Float32:
    """Rounded to bfloat16."""
    rounded: Float32 = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    return rounded


@tiles
@settings(max_examples=20)
@given(
    rows=st.integers(1, 70),
    outputs=st.integers(1, 70),
    blocks=st.integers(1, 40),
    format=st.sampled_from(FORMATS_OF_32),
    seed=st.integers(0, 1000),
)
def test_given_rows_lose_the_rounding_to_bfloat16_alone(
    rows: int, outputs: int, blocks: int, format: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    weight = random_tensor(random, format, outputs, 32 * blocks)
    made, weights = linear_program({"w": weight}, ("b",))
    weights["b"] = random_tensor(random, "F32", 1, outputs)
    table = random.standard_normal((rows, 32 * blocks), np.float32)
    got = run(made, weights, table, [True] * rows, threads=1 + seed % 3)
    rounded = {
        **weights,
        "w": tensor(in_brains(weight.float32())),
        "table": tensor(in_brains(table)),
    }
    expected = reference.load(made, rounded, KV, 1).logits(flat_batch(range(rows)))
    # Halves of the last place of a weight are rounded up natively, and not to even.
    size = np.linalg.norm(weight.float32(), axis=1).max() * np.linalg.norm(table, axis=1).max()
    assert np.abs(got - expected).max() <= 2e-3 * size


@tiles
@pytest.mark.parametrize("format", ["Q4_K", "Q5_K", "Q6_K", "Q4_1", "F32", "F16", "BF16"])
def test_given_rows_are_near_the_truth(format: str) -> None:
    random = np.random.default_rng(1)
    made, weights = linear_program({"w": random_tensor(random, format, 83, 768)})
    table = random.standard_normal((50, 768), np.float32)
    got = run(made, weights, table, [True] * 50)
    expected = reference.load(made, {**weights, "table": tensor(table)}, KV, 1).logits(
        flat_batch(range(50))
    )
    assert np.abs(got - expected).max() <= 5e-3 * np.abs(expected).max()


@pytest.mark.parametrize("format", ["Q4_1", "Q6_K", "Q8_0", "F32", "BF16"])
def test_what_a_row_is_decides_and_not_the_rows_beside_it(format: str) -> None:
    """Each row is to the last bit what it is alone, given or chosen, wherever it stands."""
    random = np.random.default_rng(2)
    made, weights = linear_program({"w": random_tensor(random, format, 83, 768)})
    table = random.standard_normal((75, 768), np.float32)
    all_given = run(made, weights, table, [True] * 75)
    all_chosen = run(made, weights, table, [False] * 75)
    for seed in range(4):
        kinds = np.repeat(np.random.default_rng(seed).random(25) < 0.5, 3)
        expected = np.where(kinds[:, None], all_given, all_chosen)
        assert np.array_equal(run(made, weights, table, list(kinds), 1 + seed % 3), expected)
    for row in (0, 20, 74):
        alone = run(made, weights, table[row : row + 1], [True])
        assert np.array_equal(alone[0], all_given[row])


def gated_program(
    random: np.random.Generator, formats: tuple[str, str, str], biased: bool = False
) -> tuple[Program, dict[str, Tensor]]:
    """Logits are (silu(x @ gate.T) · (x @ up.T)) @ down.T; `biased`: with biases of zero."""
    gate, up, down = formats
    weights = {
        "gate": random_tensor(random, gate, 512, 256),
        "up": random_tensor(random, up, 512, 256),
        "down": random_tensor(random, down, 83, 512),
        "identity": tensor(np.eye(83, dtype=np.float32)),
        "zero": tensor(np.zeros((1, 512), np.float32)),
    }
    made = program(
        [
            Embed("x", "table"),
            Linear("halves", "x", ("gate", "up"), ("zero", "zero") if biased else ()),
            GateMultiply("gated", "halves"),
            Linear("y", "gated", ("down",)),
            Logits("y", "identity"),
        ],
        {"x": 256, "halves": 1024, "gated": 512, "y": 83},
        83,
    )
    return made, weights


GATED = [
    ("Q4_1", "Q4_1", "Q4_1"),
    ("Q4_K", "Q4_K", "Q6_K"),
    ("Q4_0", "Q8_0", "Q4_0"),
    ("BF16", "BF16", "BF16"),
    ("F16", "F16", "Q8_0"),
    ("BF16", "Q8_0", "F32"),
]


@pytest.mark.parametrize("formats", [*GATED, ("Q8_0", "Q8_0", "F16")])
def test_gated_rows_are_near_the_truth(formats: tuple[str, str, str]) -> None:
    made, weights = gated_program(np.random.default_rng(3), formats)
    table = np.random.default_rng(4).standard_normal((75, 256), np.float32)
    got = run(made, weights, table, [True] * 75)
    expected = reference.load(made, {**weights, "table": tensor(table)}, KV, 1).logits(
        flat_batch(range(75))
    )
    assert np.abs(got - expected).max() <= 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("formats", GATED)
def test_a_gated_row_is_to_the_last_bit_what_it_is_alone(formats: tuple[str, str, str]) -> None:
    made, weights = gated_program(np.random.default_rng(3), formats)
    table = np.random.default_rng(4).standard_normal((75, 256), np.float32)
    all_given = run(made, weights, table, [True] * 75)
    all_chosen = run(made, weights, table, [False] * 75)
    for seed in range(3):
        kinds = np.repeat(np.random.default_rng(seed).random(25) < 0.5, 3)
        mixed = run(made, weights, table, list(kinds), 1 + seed)
        assert np.array_equal(mixed, np.where(kinds[:, None], all_given, all_chosen))
    for row in (0, 20, 74):
        alone = run(made, weights, table[row : row + 1], [True])
        assert np.array_equal(alone[0], all_given[row])


def test_a_bias_of_zero_changes_no_bit_of_a_gate() -> None:
    table = np.random.default_rng(4).standard_normal((75, 256), np.float32)
    formats = ("Q4_1", "Q4_1", "Q4_1")
    plain, biased = (
        run(*gated_program(np.random.default_rng(3), formats, bias), table, [True] * 75)
        for bias in (False, True)
    )
    assert np.array_equal(plain, biased)
