"""Floats rounded to blocks: as close as the format can be, refused where it cannot hold them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from headrace.runtime.weights.blocks import CHUNK, plain, rounded
from headrace.runtime.weights.tensor import Tensor


def matrix(rows: int, columns: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)


def decoded(tensor: Tensor) -> NDArray[np.float32]:
    return np.asarray(dequantize(tensor.data, GGMLQuantizationType[tensor.format]))


# Q4_1 fits its steps to all 32 values, so the outermost may move by a whole one.
@pytest.mark.parametrize(("format", "steps", "most"), [("Q8_0", 254, 0.5), ("Q4_1", 15, 1.0)])
@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
def test_no_value_moves_far(format: str, steps: int, most: float, source: str) -> None:
    kinds = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    stored = matrix(CHUNK // 64 + 3, 64).astype(kinds[source])  # a chunk, and a short one
    found = rounded(plain(stored, source), format)
    values = stored.astype(np.float32)
    blocks = values.reshape(-1, 32)
    if format == "Q8_0":
        spread = 2 * np.abs(blocks).max(axis=1)
    else:
        spread = blocks.max(axis=1) - blocks.min(axis=1)
    error = np.abs(decoded(found) - values).reshape(-1, 32).max(axis=1)
    # binary16 scales and minima move the ends of the range by 2^-11 of it
    assert (error <= spread / steps * most + np.abs(blocks).max(axis=1) * 2.0**-9).all()
    np.testing.assert_array_equal(decoded(found), found.float32())


def test_four_bits_lose_less_than_the_steps_of_the_range_would() -> None:
    blocks = matrix(512, 32)
    least = blocks.min(axis=1, keepdims=True)
    step = (blocks.max(axis=1, keepdims=True) - least) / 15
    plainly = np.rint((blocks - least) / step) * step + least
    found = decoded(rounded(plain(blocks, "F32"), "Q4_1"))
    assert np.square(found - blocks).mean() < 0.95 * np.square(plainly - blocks).mean()


@pytest.mark.parametrize("format", ["Q8_0", "Q4_1"])
def test_zeros_constants_and_the_smallest_numbers_stay(format: str) -> None:
    values = np.zeros((5, 32), np.float32)
    values[4, ::2] = 1e-41
    values[1], values[2], values[3] = 0.25, -3.0, 1e-12
    np.testing.assert_allclose(decoded(rounded(plain(values, "F32"), format)), values, atol=2e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e9])
@pytest.mark.parametrize("format", ["Q8_0", "Q4_1"])
def test_a_value_that_no_scale_can_reach_is_refused(format: str, bad: float) -> None:
    values = matrix(2, 32)
    values[1, 7] = bad
    with pytest.raises(ValueError, match=r"too large|no number"):
        rounded(plain(values, "F32"), format)


def test_columns_that_are_no_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="40 columns"):
        rounded(plain(matrix(2, 40), "F32"), "Q8_0")
