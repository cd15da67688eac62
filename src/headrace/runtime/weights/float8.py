"""E4M3 values (OCP FP8, 448 the largest) with float scales: reading them, and rounding to them.

Values and scales stay as they are, in blocks of 128 of a row that repeat the scale of their row or
tile (3% more bytes). Where such blocks would not fit, they are multiplied to F16: an E4M3 value is
exact there, its product with a scale rounds by at most 2^-12, where BF16 would round by 2^-9.
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np

from .blocks import CHUNK, LARGEST, Bytes, Floats, float_form, float_rows, plain
from .gguf import WeightsError
from .tensor import BLOCKS, Tensor

LARGEST_E4M3 = 448.0
TINY = np.float32(1e-30)
VALUES, SIZE = BLOCKS["E4M3"]


def fp8(weight: Tensor, scale: Tensor, tile: tuple[int, int] | None) -> Tensor:
    """Values times their scale: one for all, one a row, or one a tile [rows, columns] of them.

    A tile at an edge may be cut. Raises WeightsError where scales do not fit.
    """
    scales = scale.float32()
    if tile is not None:
        tiles = (-(-weight.rows // tile[0]), -(-weight.columns // tile[1]))
        if scales.shape != tiles:
            raise WeightsError(f"{scales.shape} scales of tiles, expected {tiles}")
        scales = np.repeat(scales, tile[0], axis=0)[: weight.rows]
        width = tile[1]
    elif scales.size in (1, weight.rows):
        scales = np.broadcast_to(scales.reshape(-1, 1), (weight.rows, 1))
        width = weight.columns
    else:
        raise WeightsError(f"{scales.size} scales for {weight.rows} rows")
    if weight.columns % VALUES == 0 == width % VALUES:
        scales = np.repeat(scales, width // VALUES, axis=1)[:, : weight.columns // VALUES]
        return pack_e4m3(weight.data, scales)
    scales = np.repeat(scales, width, axis=1)[:, : weight.columns]
    values = weight.data.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return float_form(values * scales)


def pack_e4m3(codes: Bytes, scales: Floats) -> Tensor:
    """Codes [rows, columns] with a scale [rows, columns / 128] a block."""
    rows, columns = codes.shape
    data = np.empty((rows, columns // VALUES, SIZE), np.uint8)
    data[..., :4] = np.ascontiguousarray(scales)[..., None].view(np.uint8)
    data[..., 4:] = codes.reshape(rows, -1, VALUES)
    return Tensor("E4M3", rows, columns, data.reshape(rows, -1))


def rounded_fp8(tensor: Tensor) -> Tensor:
    """A tensor of floats rounded to E4M3 with a scale a row, a chunk of rows at a time.

    Where blocks of 128 do not divide a row, the values are F16. Raises ValueError where a value is
    too large for F16, or no number.
    """
    codes = np.empty((tensor.rows, tensor.columns), ml_dtypes.float8_e4m3fn)
    scales = np.empty((tensor.rows, 1), np.float32)
    step = max(1, CHUNK // tensor.columns)
    for first in range(0, tensor.rows, step):
        values: Floats = float_rows(tensor, first, first + step)
        largest = np.abs(values).max(axis=1, keepdims=True)
        if not largest.max(initial=0.0) <= LARGEST:
            raise ValueError("a weight is too large for F16, or no number")
        some = np.maximum(largest, TINY) / np.float32(LARGEST_E4M3)
        codes[first : first + step] = values / some
        scales[first : first + step] = some
    if tensor.columns % VALUES == 0:
        return pack_e4m3(codes.view(np.uint8), np.repeat(scales, tensor.columns // VALUES, axis=1))
    return plain((codes.astype(np.float32) * scales).astype(np.float16), "F16")


def widened(tensor: Tensor) -> Tensor:
    """An E4M3 tensor as floats of 16 bits (32 where they need them); another as it is."""
    if tensor.format != "E4M3":
        return tensor
    return replace(float_form(tensor.float32()), origin=tensor.origin)
