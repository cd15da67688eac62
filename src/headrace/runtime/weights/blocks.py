"""Writing the block formats: codes and scales as they are, or floats rounded to them.

Blocks of 32 along a row (GGML's layouts). Q8_0: a binary16 scale d, int8 codes; d · q. Q4_0: d,
codes of 4 bits; d · (q - 8). Q4_1: d, a binary16 minimum m; d · q + m. Of the 16 bytes of 4-bit
codes, byte i has value i in its low half and value i + 16 in its high half. MXFP4 (the OCP
Microscaling specification, version 1.0): a byte e, codes of 4 bits; E2M1[code] · 2^(e - 127).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tensor import Tensor

BLOCK = 32
LARGEST = 65_504.0  # of binary16
SMALLEST = 2.0**-14  # of binary16 with all its bits
TINY = 1e-30
UNREACHABLE = "a weight is too large for a binary16 scale, or no number"
CHUNK = 1 << 17  # values rounded at once: their floats stay in a core's cache

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def plain(values: NDArray[Any], format: str) -> Tensor:
    """A matrix [rows, columns] of words or floats as a tensor."""
    rows, columns = values.shape
    return Tensor(format, rows, columns, np.ascontiguousarray(values).view(np.uint8))


def float_form(values: Floats) -> Tensor:
    """Values as F16, which rounds by 2^-12 of them (by 3e-8 below 6e-5), or as F32 where one is too
    large for it, or all are too small."""
    largest = np.abs(values).max(initial=0.0)
    if largest > LARGEST or 0 < largest < SMALLEST:
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


def pack_mxfp4(pairs: Bytes, exponents: Bytes) -> Tensor:
    """E2M1 codes as checkpoints keep them, value 2i in the low half of byte i and 2i + 1 in its
    high half: [rows, blocks, 16], with an exponent [rows, blocks]. The codes change places only.

    Raises ValueError on an exponent of 255, which stands for no number.
    """
    if (exponents == 255).any():
        raise ValueError("a scale is no number")
    rows, count = exponents.shape
    data = np.empty((rows, count, 17), np.uint8)
    data[..., 0] = exponents
    codes = np.stack([pairs & 15, pairs >> 4], axis=-1)
    data[..., 1:] = nibbles(codes.reshape(rows, -1))
    return Tensor("MXFP4", rows, count * BLOCK, data.reshape(rows, -1))


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
    16 about from its least to its largest, as suits all 32 best. Raises ValueError where blocks do
    not divide the columns, or a value is too large for a binary16 scale.
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
    columns = upright(blocks)
    largest: Floats = np.maximum(columns.max(axis=0), -columns.min(axis=0))
    scales = fitting(np.divide(largest, np.float32(127), dtype=np.float32))
    scales = scales.reshape(blocks.shape[:-1])
    codes = np.rint(blocks * inverse(scales)[..., None])
    data[..., :2] = halves(scales)
    data[..., 2:] = np.clip(codes, -127, 127, out=codes).astype(np.int8).view(np.uint8)


def write_q4_1(blocks: Floats, data: Bytes) -> None:
    """Round blocks [rows, blocks, 32] into their bytes."""
    columns = upright(blocks)
    minima = columns.min(axis=0)
    scales: Floats = np.divide(columns.max(axis=0) - minima, np.float32(15), dtype=np.float32)
    fitting(scales)  # refuses what is no number
    codes = steps(columns, scales, minima)
    scales, minima = (fitting(one) for one in refitted(columns, codes, scales, minima))
    small = steps(columns, scales, minima).astype(np.uint8)
    packed: Bytes = np.bitwise_or(small[:16], np.left_shift(small[16:], np.uint8(4)))
    shape = blocks.shape[:-1]
    data[..., :2] = halves(scales.reshape(shape))
    data[..., 2:4] = halves(minima.reshape(shape))
    data[..., 4:] = packed.T.reshape(*shape, 16)


def upright(blocks: Floats) -> Floats:
    """Blocks [.., 32] as columns [32, blocks]: numpy goes down them three times as fast as along
    rows of 32, the copy included."""
    return np.ascontiguousarray(blocks.reshape(-1, BLOCK).T)


def steps(columns: Floats, scales: Floats, minima: Floats) -> Floats:
    """The nearest of 16 steps of each value."""
    found: Floats = columns - minima
    found *= inverse(scales)
    np.rint(found, out=found)
    return np.clip(found, 0, 15, out=found)


def refitted(
    columns: Floats, codes: Floats, scales: Floats, minima: Floats
) -> tuple[Floats, Floats]:
    """Scale and minimum with the least squared error for these codes: a line through the points.

    A tenth less error than the range's own scale and minimum.
    """
    mean_code, mean_value = mean(codes), mean(columns)
    spread = mean(codes * codes) - mean_code * mean_code
    shared = mean(codes * columns) - mean_code * mean_value
    several = spread > 0.01  # one code of another value is 0.03; what is less is rounding
    found = np.divide(shared, spread, out=scales.copy(), where=several)
    return found, np.where(several, mean_value - found * mean_code, minima)


def mean(columns: Floats) -> Floats:
    """The mean of each column, summed in halves, as vectors of any width can."""
    while len(columns) > 1:
        columns = columns[: len(columns) // 2] + columns[len(columns) // 2 :]
    found: Floats = columns[0] / np.float32(BLOCK)
    return found


def fitting(values: Floats) -> Floats:
    """Values rounded to binary16, zeros without a sign.

    Raises ValueError where one is too large, or is no number.
    """
    if not np.abs(values).max(initial=0.0) <= LARGEST:
        raise ValueError(UNREACHABLE)
    return (values + 0).astype(np.float16).astype(np.float32)


def inverse(scales: Floats) -> Floats:
    """1 / scales; 0 where that would overflow, far below what binary16 can hold."""
    return np.divide(1, scales, out=np.zeros_like(scales), where=np.abs(scales) > TINY)
