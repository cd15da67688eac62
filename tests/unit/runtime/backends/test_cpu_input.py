"""What the CPU backend refuses, and that nothing it is given ends the process."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headrace.runtime.backends import cpu
from headrace.runtime.backends.base import Batch, KVLayout
from headrace.runtime.backends.cpu import CPUBackend
from headrace.runtime.backends.cpu._native import levels
from headrace.runtime.models.architecture import Rope
from headrace.runtime.models.program import (
    Activate,
    Embed,
    GateMultiply,
    Linear,
    Logits,
    Norm,
    Op,
    UnsupportedProgram,
)
from headrace.runtime.weights.tensor import Tensor
from tests.fakes.programs import (
    attention_program,
    flat_batch,
    linear_program,
    program,
    ragged_batch,
    tensor,
)

KV = KVLayout(4, 32)


@pytest.fixture
def backend() -> CPUBackend:
    made, weights = attention_program(2, 1, 32, Rope((1.0, 0.1), False))
    weights["table"] = tensor(np.ones((10, 128), np.float32))
    return cpu.load(made, weights, KV, 2)


def good() -> Batch:
    """Two sequences, of 3 rows and 1 row."""
    tables = np.array([[0, -1], [1, 2]], np.int32)
    return ragged_batch([(0, 3), (40, 1)], tables, KV, [1, 2, 3, 4])


def ints(*values: int) -> Any:
    return np.array(values, np.int32)


BAD = [
    ({"tokens": ints(1, 2, 3, 10)}, r"tokens\[3\] is 10, expected 0 to 9"),
    ({"tokens": ints(1, -2, 3, 1)}, r"tokens\[1\] is -2"),
    ({"tokens": np.array([1, 2, 3, 4], np.int64)}, "tokens: expected a numpy array of int32"),
    ({"tokens": [1, 2, 3, 4]}, "tokens: expected a numpy array of int32"),
    ({"tokens": np.ones((4, 1), np.int32)}, "tokens: .* with 1 axis"),
    ({"tokens": np.ones(8, np.int32)[::2]}, "tokens: expected a C-contiguous array"),
    ({"positions": ints(0, 1, 2)}, "positions has 3 values, expected 4"),
    ({"positions": ints(0, 1, 3, 40)}, r"positions\[2\] is 3, expected 0 to 2"),
    ({"positions": ints(0, 2, 1, 40)}, r"positions\[2\] is 1, expected ascending"),
    ({"positions": ints(-1, 1, 2, 40)}, r"positions\[0\] is -1"),
    ({"slots": ints(0, 1, 2, 128)}, r"slots\[3\] is 128, expected 0 to 127"),
    ({"slots": ints(0, 1, -2, 0)}, r"slots\[2\] is -2"),
    ({"row_starts": ints(0, 3)}, "row_starts has 2 values, expected 3"),
    ({"row_starts": ints(0, 3, 3)}, r"row_starts\[2\] is 3, expected the number of rows, 4"),
    ({"row_starts": ints(1, 3, 4)}, r"row_starts\[0\] is 1, expected 0"),
    ({"row_starts": ints(0, 9, 4)}, r"row_starts\[1\] is 9"),
    ({"context_lengths": ints(3, 65)}, r"context_lengths\[1\] is 65"),
    ({"context_lengths": ints(-1, 41)}, r"context_lengths\[0\] is -1"),
    ({"context_lengths": ints(3, 40)}, r"positions\[3\] is 40"),
    ({"context_lengths": ints(3, 2**31 - 1)}, r"context_lengths\[1\]"),
    ({"block_tables": np.array([[0, -1], [1, 4]], np.int32)}, r"block_tables\[3\] is 4"),
    ({"block_tables": np.array([[0, 1], [1, -1]], np.int32)}, r"block_tables\[3\] is -1"),
    ({"block_tables": np.zeros((3, 2), np.int32)}, "block_tables has 6 values, expected 4"),
    ({"block_tables": np.zeros((2, 0), np.int32)}, r"context_lengths\[0\]"),
    ({"sampled_rows": ints(0, 1, 2, 4)}, r"sampled_rows\[3\] is 4, expected 0 to 3"),
    ({"sampled_rows": ints(0)}, "sampling has 4 values, expected 1"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_bad_batch_is_refused_by_field(
    backend: CPUBackend, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        backend.run(replace(good(), **change))
    assert len(backend.run(good()).tokens) == 4  # and the next good one runs


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", float("nan")),
        ("uniform", 1.0),
        ("uniform", float("nan")),
    ],
)
def test_bad_sampling_is_refused_by_field(backend: CPUBackend, field: str, value: float) -> None:
    batch = good()
    getattr(batch.sampling, field)[2] = value
    with pytest.raises(ValueError, match=rf"sampling.{field}\[2\]"):
        backend.run(batch)


def test_an_empty_batch_gives_nothing(backend: CPUBackend) -> None:
    batch = flat_batch([])
    assert backend.run(batch).tokens.shape == (0,)
    assert backend.logits(batch).shape == (0, 64)


def test_a_step_without_sampled_rows_runs(backend: CPUBackend) -> None:
    tables = np.array([[0], [1]], np.int32)
    batch = ragged_batch([(0, 3), (0, 1)], tables, KV, [1, 2, 3, 4])
    none = flat_batch([])
    result = backend.run(replace(batch, sampled_rows=ints(), sampling=none.sampling))
    assert result.tokens.shape == (0,)


def test_a_closed_backend_says_so(backend: CPUBackend) -> None:
    backend.close()
    backend.close()
    with pytest.raises(ValueError, match="closed"):
        backend.run(good())


@pytest.mark.parametrize("threads", [-1, 1025])
def test_an_impossible_number_of_threads_is_refused(threads: int) -> None:
    made, weights = linear_program({"w": tensor(np.ones((4, 32), np.float32))})
    with pytest.raises(ValueError, match="threads must be 1 to 1024"):
        cpu.load(made, weights, KV, threads)


def test_an_unknown_level_is_refused_with_those_there_are() -> None:
    made, weights = linear_program({"w": tensor(np.ones((4, 32), np.float32))})
    with pytest.raises(ValueError, match=f'{", ".join(levels())}, not "sse9"'):
        cpu.load(made, weights, KV, 1, cpu.Options("sse9"))


def test_the_environment_chooses_level_and_precision() -> None:
    environ = {"HEADRACE_CPU_LEVEL": "avx2", "HEADRACE_CPU_PRECISE": "1"}
    assert cpu.options_from(environ) == cpu.Options("avx2", precise=True)
    assert cpu.options_from({}) == cpu.Options()


def test_a_cache_larger_than_memory_is_a_memory_error() -> None:
    made, weights = linear_program({"w": tensor(np.ones((4, 32), np.float32))})
    huge = replace(made, layers=10**6, kv_heads=4000, head_size=1024)
    with pytest.raises(MemoryError):
        cpu.load(huge, weights, KVLayout(2**20, 32), 1)


SQUARE = tensor(np.ones((8, 8), np.float32))
FLAT = tensor(np.ones((1, 8), np.float32))


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (Embed("x", "nowhere"), "lacks"),
        (Embed("nowhere", "square"), "no buffer 'nowhere'"),
        (Embed("wide", "square"), "embed"),
        (Norm("x", "wide", "flat", 1e-5), "widths differ"),
        (Norm("x", "x", "square", 1e-5), "a vector"),
        (Linear("wide", "x", ("square",)), "output's width"),
        (Linear("x", "wide", ("square",)), "source's width"),
        (Linear("y", "x", ("square",), ("flat", "flat")), "a bias for every weight"),
        (Linear("x", "x", ("square",)), "one buffer"),
        (GateMultiply("x", "y"), "twice as wide"),
        (Logits("x", "flat"), "vocabulary"),
    ],
)
def test_an_op_that_does_not_fit_is_refused_at_load(op: Op, message: str) -> None:
    made = program([op, Logits("x", "square")], {"x": 8, "y": 8, "wide": 16}, 8)
    with pytest.raises(ValueError, match=message):
        cpu.load(made, {"square": SQUARE, "flat": FLAT}, KV, 1)


@pytest.mark.parametrize(
    "weight",
    [
        Tensor("F32", 8, 8, np.zeros((8, 31), np.uint8)),
        Tensor("F32", 9, 8, np.zeros((8, 32), np.uint8)),
        Tensor("Q4_0", 8, 8, np.zeros((8, 18), np.uint8)),
        Tensor("Q9", 8, 8, np.zeros((8, 32), np.uint8)),
    ],
)
def test_a_weight_whose_bytes_do_not_fit_is_refused(weight: Tensor) -> None:
    made = program([Embed("x", "w"), Logits("x", "w")], {"x": 8}, 8)
    with pytest.raises(ValueError, match="format"):
        cpu.load(made, {"w": weight}, KV, 1)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_is_told_to_load_again_and_ends(backend: CPUBackend) -> None:
    """A fork copies no threads; a child that ran, or joined them at its end, would hang."""
    child = os.fork()
    if child == 0:
        try:
            backend.run(good())
        except RuntimeError:
            backend.close()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(backend.run(good()).tokens) == 4


def test_calls_from_several_threads_take_turns(backend: CPUBackend) -> None:
    expected = backend.logits(good())
    wrong: list[int] = []

    def call() -> None:
        for _ in range(50):
            if not np.array_equal(backend.logits(good()), expected):
                wrong.append(1)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_an_idle_backend_uses_no_processor_time(backend: CPUBackend) -> None:
    backend.run(good())
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05


@pytest.mark.parametrize(
    ("op", "lacking"),
    [
        (Embed("x", "square", first=3), "Embed.first"),
        (Norm("x", "x", "flat", 1e-5, bias="flat"), "a bias"),
        (Activate("x", "x", "clamped_silu"), "clamped_silu"),
        (GateMultiply("x", "y", "clamped_silu"), "clamped_silu"),
    ],
)
def test_what_the_backend_does_not_know_is_never_passed_over(op: Op, lacking: str) -> None:
    made = program([op, Logits("x", "square")], {"x": 8, "y": 16}, 8)
    with pytest.raises(UnsupportedProgram, match=lacking):
        cpu.load(made, {"square": SQUARE, "flat": FLAT}, KV, 1)
