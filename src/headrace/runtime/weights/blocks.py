"""Writing the block formats: codes and scales as they are, or floats rounded to them.

Blocks of 32 along a row (GGML's layouts). Q8_0: a binary16 scale d, int8 codes; d · q. Q4_0: d,
codes of 4 bits; d · (q - 8). Q4_1: d, a binary16 minimum m; d · q + m. Of the 16 bytes of 4-bit
codes, byte i has value i in its low half and value i + 16 in its high half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tensor import Tensor

BLOCK = 32
LARGEST = 65_504.0  # of binary16
CHUNK = 1 << 17  # values rounded at once: their floats stay in a core's cache

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def plain(values: NDArray[Any], format: str) -> Tensor:
    """A matrix [rows, columns] of words or floats as a tensor."""
    rows, columns = values.shape
    return Tensor(format, rows, columns, np.ascontiguousarray(values).view(np.uint8))


def float_form(values: Floats) -> Tensor:
    """Values as F16, which rounds by at most 2^-12 of them (3e-8 below 6e-5), or F32 where one is
    too large for it."""
    if np.abs(values).max(initial=0.0) > LARGEST:
        return plain(values, "F32")
    return plain(values.astype(np.float16), "F16")


def holds(values: Floats) -> bool:
    """Whether binary16 has every value to its full precision of 2^-11: none too large or small."""
    with np.errstate(over="ignore"):
        error = np.abs(values.astype(np.float16).astype(np.float32) - values)
    return bool((error <= np.abs(values) * np.float32(2.0**-11)).all())


def pack_q8_0(codes: NDArray[np.int8], scales: Floats) -> Tensor:
    """Codes [rows, columns] with a scale [rows, columns / 32] a block. Scales round to binary16."""
    rows, columns = codes.shape
    data = np.empty((rows, columns // BLOCK, 34), np.uint8)
    data[..., :2] = halves(scales)
    data[..., 2:] = codes.view(np.uint8).reshape(rows, -1, BLOCK)
    return Tensor("Q8_0", rows, columns, data.reshape(rows, -1))


def pack_q4_0(codes: Bytes, scales: Floats) -> Tensor:
    """Codes 0 to 15, of which 8 is zero, with a scale a block. Scales round to binary16."""
    rows, columns = codes.shape
    data = np.empty((rows, columns // BLOCK, 18), np.uint8)
    data[..., :2] = halves(scales)
    data[..., 2:] = nibbles(codes)
    return Tensor("Q4_0", rows, columns, data.reshape(rows, -1))


def pack_q4_1(codes: Bytes, scales: Floats, minima: Floats) -> Tensor:
    """Codes 0 to 15 with a scale and a minimum a block; both round to binary16."""
    rows, columns = codes.shape
    data = np.empty((rows, columns // BLOCK, 20), np.uint8)
    data[..., :2] = halves(scales)
    data[..., 2:4] = halves(minima)
    data[..., 4:] = nibbles(codes)
    return Tensor("Q4_1", rows, columns, data.reshape(rows, -1))


def halves(values: Floats) -> Bytes:
    """Binary16, the two bytes of each in a last dimension."""
    return np.ascontiguousarray(values, dtype=np.float16)[..., None].view(np.uint8)


def nibbles(codes: Bytes) -> Bytes:
    """Codes [rows, columns] as [rows, blocks, 16] bytes."""
    blocks = codes.reshape(len(codes), -1, BLOCK)
    packed: Bytes = np.bitwise_or(blocks[..., :16], np.left_shift(blocks[..., 16:], np.uint8(4)))
    return packed


def rounded(tensor: Tensor, format: str) -> Tensor:
    """A tensor of floats rounded to Q8_0 or Q4_1, a chunk of rows at a time.

    Q8_0 rounds to the nearest of 255 steps of the block's largest value, Q4_1 to the nearest of
    16 from its least to its largest. Raises ValueError where blocks do not divide the columns, or
    a value is too large for a binary16 scale.
    """
    if tensor.columns % BLOCK:
        raise ValueError(f"{tensor.columns} columns are no blocks of {BLOCK}")
    write = write_q8_0 if format == "Q8_0" else write_q4_1
    size = 34 if format == "Q8_0" else 20
    data = np.empty((tensor.rows, tensor.columns // BLOCK, size), np.uint8)
    step = max(1, CHUNK // tensor.columns)
    for first in range(0, tensor.rows, step):
        values = float_rows(tensor, first, first + step)
        write(values.reshape(len(values), -1, BLOCK), data[first : first + step])
    return Tensor(format, tensor.rows, tensor.columns, data.reshape(tensor.rows, -1))


def float_rows(tensor: Tensor, first: int, end: int) -> Floats:
    """Some rows as float32."""
    data = tensor.data[first:end]
    if tensor.format == "BF16":  # the upper half of a float32
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return Tensor(tensor.format, len(data), tensor.columns, data).float32()


def write_q8_0(blocks: Floats, data: Bytes) -> None:
    """Round blocks [rows, blocks, 32] into their bytes."""
    least, most = extremes(blocks)
    largest: Floats = np.maximum(most, -least)
    scales = fitting(np.divide(largest, np.float32(127), dtype=np.float32))
    codes = np.rint(blocks * inverse(scales)[..., None])
    data[..., :2] = halves(scales)
    data[..., 2:] = np.clip(codes, -127, 127, out=codes).astype(np.int8).view(np.uint8)


def write_q4_1(blocks: Floats, data: Bytes) -> None:
    """Round blocks [rows, blocks, 32] into their bytes."""
    least, most = extremes(blocks)
    minima = fitting(least)
    scales = fitting((most - minima) / np.float32(15))
    codes = (blocks - minima[..., None]) * inverse(scales)[..., None]
    codes += np.float32(0.5)
    small = np.clip(codes, 0, 15, out=codes).astype(np.uint8)
    data[..., :2] = halves(scales)
    data[..., 2:4] = halves(minima)
    np.bitwise_or(small[..., :16], small[..., 16:] << 4, out=data[..., 4:])


def extremes(blocks: Floats) -> tuple[Floats, Floats]:
    """The least and the largest value of each block [rows, blocks, 32].

    Along 32 values numpy takes 2.6 ns a value; down the columns of a transposed copy 0.8.
    """
    columns = np.ascontiguousarray(blocks.reshape(-1, BLOCK).T)
    shape = blocks.shape[:-1]
    return columns.min(axis=0).reshape(shape), columns.max(axis=0).reshape(shape)


def fitting(values: Floats) -> Floats:
    """Values rounded to binary16. Raises ValueError where one is too large, or is no number."""
    if not np.abs(values).max(initial=0.0) <= LARGEST:
        raise ValueError("a weight is too large for a binary16 scale, or no number")
    return values.astype(np.float16).astype(np.float32)


def inverse(scales: Floats) -> Floats:
    """1 / scales; 0 for 0."""
    return np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
