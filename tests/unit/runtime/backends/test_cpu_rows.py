"""Ops over single rows of the CPU backend, against the reference."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from headrace.runtime.backends import cpu, reference
from headrace.runtime.backends.base import Float32, KVLayout
from headrace.runtime.backends.cpu._native import levels
from headrace.runtime.models.architecture import Rope
from headrace.runtime.models.program import (
    Attention,
    Embed,
    GateMultiply,
    Logits,
    Norm,
    NormHeads,
    Op,
    RotateAndWrite,
)
from tests.fakes.programs import flat_batch, program, ragged_batch, random_tensor, tensor

KV = KVLayout(2, 32)
ROPE = Rope((1.0, 0.5, 0.01), False, scale=1.3)
HEADS, KV_HEADS, HEAD_SIZE = 4, 2, 40


def both(level: str, ops: list[Op], buffers: dict[str, int], out: str) -> tuple[Float32, Float32]:
    """Buffer `out` after `ops`, of 37 rows of random tokens: by this backend, by the reference."""
    random = np.random.default_rng(1)
    width = buffers[out]
    shape = {"kv_heads": KV_HEADS, "head_size": HEAD_SIZE}
    made = program([*ops, Logits(out, "identity")], buffers, width, **shape)
    weights = {"identity": tensor(np.eye(width, dtype=np.float32))}
    for name, rows, columns in (
        ("table", 50, buffers["x"]),
        ("wide", 1, buffers["x"]),
        ("head", 1, HEAD_SIZE),
        ("query", 1, HEADS * HEAD_SIZE),
        ("key", 1, KV_HEADS * HEAD_SIZE),
    ):
        weights[name] = random_tensor(random, "F32", rows, columns)
    tables = np.array([[0, 1]], np.int32)
    batch = ragged_batch([(0, 37)], tables, KV, list(random.integers(0, 50, 37)))
    backend = cpu.load(made, weights, KV, 2, cpu.Options(level, precise=True))
    return backend.logits(batch), reference.load(made, weights, KV, 1).logits(batch)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("width", [1, 15, 64, 100, 1030])
def test_embedding_norm_and_residual(level: str, width: int) -> None:
    ops: list[Op] = [
        Embed("x", "table", scale=3.5),
        Norm("y", "x", "wide", 1e-5),
        Norm("z", "x", "wide", 1e-6, add="y", add_scale=0.3),
        Norm("y", "z", "wide", 1e-6, accumulate=True),
    ]
    for out in ("x", "y", "z"):
        np.testing.assert_allclose(
            *both(level, ops, {"x": width, "y": width, "z": width}, out), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("width", [1, 16, 37, 513])
def test_gate(level: str, activation: Literal["silu", "gelu_tanh"], width: int) -> None:
    ops: list[Op] = [Embed("x", "table", scale=40.0), GateMultiply("y", "x", activation)]
    actual, expected = both(level, ops, {"x": 2 * width, "y": width}, "y")
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("level", levels())
def test_scaled_and_capped_logits(level: str) -> None:
    random = np.random.default_rng(2)
    table = tensor(random.standard_normal((9, 77), np.float32) * 20)
    for scale, cap in ((0.1, 0.0), (1.0, 30.0), (3.0, 5.0)):
        ops: list[Op] = [Embed("x", "table"), Logits("x", "table", scale, cap)]
        made = program(ops, {"x": 77}, 9)
        batch = flat_batch(range(9))
        backend = cpu.load(made, {"table": table}, KV, 2, cpu.Options(level))
        expected = reference.load(made, {"table": table}, KV, 1).logits(batch)
        np.testing.assert_allclose(backend.logits(batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("whole", [False, True])
def test_norm_of_heads_before_a_scaled_rotation(level: str, whole: bool) -> None:
    names = ("query", "key") if whole else ("head", "head")
    shape = (HEADS, KV_HEADS, HEAD_SIZE)
    ops: list[Op] = [
        Embed("x", "table"),
        NormHeads("x", *shape, *names, epsilon=1e-6, whole=whole),
        RotateAndWrite("x", 0, *shape, ROPE),
        Attention("y", "x", 0, *shape, scale=0.2),
    ]
    buffers = {"x": (HEADS + 2 * KV_HEADS) * HEAD_SIZE, "y": HEADS * HEAD_SIZE}
    for out in ("x", "y"):
        np.testing.assert_allclose(*both(level, ops, buffers, out), rtol=1e-4, atol=2e-5)
