"""Linear ops of the CPU backend: every format on every instruction level, against float32."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.runtime.backends import cpu, reference
from headrace.runtime.backends.base import Float32, KVLayout
from headrace.runtime.backends.cpu._native import levels
from headrace.runtime.models.program import Program
from headrace.runtime.weights.tensor import BLOCKS, FORMATS, Tensor
from tests.fakes.programs import flat_batch, linear_program, random_tensor, tensor

KV = KVLayout(1, 32)
FLOATS = ("F32", "F16", "BF16")
INTEGER_LEVELS = [level for level in levels() if level != "portable"]


def run(
    made: Program,
    weights: dict[str, Tensor],
    table: Float32,
    options: cpu.Options,
    threads: int = 2,
) -> Float32:
    """Logits of every row of `table`."""
    backend = cpu.load(made, {**weights, "table": tensor(table)}, KV, threads, options)
    logits = backend.logits(flat_batch(range(len(table))))
    backend.close()
    return logits


def truth(made: Program, weights: dict[str, Tensor], table: Float32) -> Float32:
    """The same by the reference backend."""
    backend = reference.load(made, {**weights, "table": tensor(table)}, KV, 1)
    return backend.logits(flat_batch(range(len(table))))


def to_codes_and_back(rows: Float32) -> Float32:
    """Activations as the integer kernels see them: 12 bits a block of 32, a power of 2 as scale."""
    blocks = rows.reshape(len(rows), -1, 32).astype(np.float64)
    top = np.abs(blocks).max(axis=2, keepdims=True)
    scale = np.exp2(np.ceil(np.log2(np.where(top, top, 1) / 2039)))
    values: Float32 = (np.rint(blocks / scale) * scale).astype(np.float32)
    return values.reshape(rows.shape)


def assert_close(actual: Float32, expected: Float32, relative: float) -> None:
    """Equal up to `relative` of the largest value."""
    assert np.abs(actual - expected).max() <= relative * np.abs(expected).max()


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("format", FORMATS)
def test_precise_mode_equals_float32(level: str, format: str) -> None:
    random = np.random.default_rng(1)
    made, weights = linear_program({"w": random_tensor(random, format, 83, 768)})
    for rows in (1, 4, 5, 21):
        table = random.standard_normal((rows, 768), np.float32)
        got = run(made, weights, table, cpu.Options(level, precise=True))
        assert_close(got, truth(made, weights, table), 1e-5)


@pytest.mark.parametrize("level", INTEGER_LEVELS)
@pytest.mark.parametrize("format", [name for name in FORMATS if name not in FLOATS])
def test_integer_kernels_lose_only_the_rounding_of_activations(level: str, format: str) -> None:
    random = np.random.default_rng(2)
    made, weights = linear_program({"w": random_tensor(random, format, 83, 768)})
    # The K formats' scales are products, which packing rounds to float16.
    relative = 1e-3 if format.endswith("K") else 1e-5
    for rows in (1, 2, 3, 8, 21):
        table = random.standard_normal((rows, 768), np.float32)
        got = run(made, weights, table, cpu.Options(level))
        assert_close(got, truth(made, weights, to_codes_and_back(table)), relative)
        assert_close(got, truth(made, weights, table), max(relative, 1.6e-3))


@pytest.mark.parametrize("level", INTEGER_LEVELS)
@pytest.mark.parametrize("format", ["Q8_0", "Q4_0", "Q5_0", "Q5_1", "Q4_1"])
def test_integer_kernels_hold_at_the_largest_codes(level: str, format: str) -> None:
    """Sums of full codes of one sign are where 16-bit partial sums would overflow."""
    made, weights = linear_program({"w": tensor(np.full((16, 64), -2.0, np.float32), format)})
    if format == "Q8_0":
        data = weights["w"].data.copy()
        data.reshape(-1, 34)[:, 2:] = (
            128  # the code -128, which no quantiser writes but files may hold
        )
        weights["w"] = Tensor(format, 16, 64, data)
    table = np.array([[3.0] * 64, [-3.0] * 64], np.float32)
    got = run(made, weights, table, cpu.Options(level))
    assert_close(got, truth(made, weights, table), 1e-5)


def test_weights_of_fp8_are_widened() -> None:
    random = np.random.default_rng(7)
    made, weights = linear_program({"w": random_tensor(random, "E4M3", 83, 768)})
    table = random.standard_normal((3, 768), np.float32)
    got = run(made, weights, table, cpu.Options(levels()[0], precise=True))
    assert_close(got, truth(made, weights, table), 1e-3)


@pytest.mark.parametrize("level", INTEGER_LEVELS)
@pytest.mark.parametrize("format", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q6_K", "Q4_K"])
def test_blocks_whose_scale_is_zero(level: str, format: str) -> None:
    """Kernels add to a scale's exponent, so a scale of 0 needs care."""
    random = np.random.default_rng(8)
    weight = random_tensor(random, format, 20, 768)
    _, size = FORMATS[format]
    blocks = weight.data.reshape(-1, size)
    if format == "Q6_K":
        blocks[::2, 192:200] = 0  # the scales of half a block
    else:
        blocks[::2, :2] = 0
    made, weights = linear_program({"w": weight})
    table = random.standard_normal((18, 768), np.float32)
    got = run(made, weights, table, cpu.Options(level))
    relative = 1e-3 if format.endswith("K") else 1e-5
    assert_close(got, truth(made, weights, to_codes_and_back(table)), relative)


@pytest.mark.parametrize("level", INTEGER_LEVELS)
def test_activations_of_any_size(level: str) -> None:
    """Blocks of zeros, of the least and of very large values, beside usual ones."""
    random = np.random.default_rng(9)
    made, weights = linear_program({"w": random_tensor(random, "Q4_1", 16, 128)})
    table = random.standard_normal((18, 128), np.float32)
    for row, size in ((0, 0.0), (1, 1e-44), (2, 1e-30), (3, 1e30)):
        table[row, 32:64] *= np.float32(size)
    table[4] = 0
    got = run(made, weights, table, cpu.Options(level))
    expected = truth(made, weights, to_codes_and_back(table))
    for row in range(18):
        assert_close(got[row], expected[row], 1e-5)


@settings(max_examples=25)
@given(
    rows=st.integers(1, 70),
    outputs=st.integers(1, 70),
    blocks=st.integers(1, 9),
    format=st.sampled_from([name for name, (values, _) in FORMATS.items() if values <= 32]),
    level=st.sampled_from(levels()),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    rows: int, outputs: int, blocks: int, format: str, level: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    columns = 32 * blocks + (seed % 32 if format in FLOATS else 0)
    made, weights = linear_program({"w": random_tensor(random, format, outputs, columns)})
    table = random.standard_normal((rows, columns), np.float32)
    got = run(made, weights, table, cpu.Options(level), threads=1 + seed % 3)
    expected = truth(made, weights, table)
    exact = format in FLOATS or level == "portable"
    # Rounding errs by up to 1/2,040 of a block's largest value, at random over the columns.
    error = 1e-5 if exact else 1.6e-3
    size = np.sqrt((weights["w"].float32() ** 2).sum(axis=1).max() * (table**2).sum(axis=1).max())
    assert np.abs(got - expected).max() <= error * size


@pytest.mark.parametrize("level", levels())
def test_weights_of_several_formats_with_biases_in_one_op(level: str) -> None:
    random = np.random.default_rng(3)
    parts = {
        name: random_tensor(random, format, rows, 512)
        for name, format, rows in (("q", "Q4_K", 40), ("k", "F16", 9), ("v", "Q6_K", 24))
    }
    made, weights = linear_program(parts, ("bq", "bk", "bv"))
    for name, rows in (("bq", 40), ("bk", 9), ("bv", 24)):
        weights[name] = random_tensor(random, "F32", 1, rows)
    table = random.standard_normal((5, 512), np.float32)
    got = run(made, weights, table, cpu.Options(level))
    assert_close(got, truth(made, weights, table), 1e-5 if level == "portable" else 1e-3)


@pytest.mark.parametrize("level", INTEGER_LEVELS)
def test_scales_past_float16_fall_back_to_float32(level: str) -> None:
    random = np.random.default_rng(4)
    weight = random_tensor(random, "Q4_K", 16, 256)
    weight.data[:, :2] = np.array([60000], np.float16).view(np.uint8)
    weight.data[:, 4:12] = 63  # times the largest scale code: far past 65,504
    made, weights = linear_program({"w": weight})
    backend = cpu.load(made, {**weights, "table": weight}, KV, 1, cpu.Options(level))
    vectors = "avx512" if level == "amx" else level
    assert backend.kernels()["linear Q4_K"] == f"{vectors}-float32"
    table = random.standard_normal((3, 256), np.float32)
    assert_close(run(made, weights, table, cpu.Options(level)), truth(made, weights, table), 1e-5)


@pytest.mark.parametrize("format", ["Q4_1", "Q6_K", *FLOATS])
def test_a_row_is_the_same_alone_in_a_batch_and_on_any_number_of_threads(format: str) -> None:
    random = np.random.default_rng(5)
    made, weights = linear_program({"w": random_tensor(random, format, 83, 512)})
    table = random.standard_normal((11, 512), np.float32)
    together = run(made, weights, table, cpu.Options())
    for threads in (1, 3):
        assert np.array_equal(run(made, weights, table, cpu.Options(), threads), together)
    for row in range(11):
        assert np.array_equal(
            run(made, weights, table[row : row + 1], cpu.Options())[0], together[row]
        )


@pytest.mark.skipif("amx" not in levels(), reason="this processor has no tiles")
@pytest.mark.parametrize("format", [name for name in FORMATS if name not in FLOATS])
def test_tiles_give_what_vectors_give_to_the_bit(format: str) -> None:
    """So that a row is the same whatever the batch, on either side of the crossover."""
    random = np.random.default_rng(6)
    few = max(64, BLOCKS[format][0])  # a panel of two blocks, less than is unpacked ahead
    for outputs, columns in ((83, 768), (8, few), (33, few)):
        made, weights = linear_program({"w": random_tensor(random, format, outputs, columns)})
        for rows in (5, 16, 31, 48, 400):
            table = random.standard_normal((rows, columns), np.float32)
            tiles = run(made, weights, table, cpu.Options("amx"))
            assert np.array_equal(tiles, run(made, weights, table, cpu.Options("avx512")))
