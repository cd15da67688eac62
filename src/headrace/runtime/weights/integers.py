"""Integer checkpoints (AWQ, GPTQ, compressed-tensors) as block formats, their codes untouched.

A weight there is (code - zero) · scale, zero and scale shared by a group of a row. Codes of 4 bits
are Q4_0 where every zero is 8, else Q4_1 with minimum -zero · scale; codes of 8 bits are Q8_0. No
code changes. What is lost is the rounding of scale and minimum to binary16: nothing of a float16
scale, and of a minimum at most 2^-11 of it, under a hundredth of a step. Where a block would not
hold a group (groups that blocks of 32 do not divide, columns in an order of their own, 8-bit codes
that are not symmetric, scales too small for binary16) the weight becomes F16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .blocks import BLOCK, Floats, float_form, holds, pack_q4_0, pack_q4_1, pack_q8_0, plain
from .gguf import WeightsError
from .tensor import Tensor

# Which of 8 columns the nibbles of an AWQ word hold, from the lowest (AutoAWQ, "gemm").
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
IN_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)

Codes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Grouped:
    """A weight [rows, columns] = (codes - zeros) · scales, those of the column's group.

    `order` is each column's group, where groups are not `columns / groups` columns in order.
    """

    codes: Codes  # [rows, columns]
    zeros: Codes  # [rows, groups]
    scales: Floats  # [rows, groups]
    bits: int  # 4 or 8
    order: NDArray[np.int32] | None = None  # [columns]

    def __post_init__(self) -> None:
        rows, columns = self.codes.shape
        groups = self.scales.shape[1]
        if self.scales.shape[0] != rows or self.zeros.shape != self.scales.shape:
            raise WeightsError(f"zeros or scales do not fit a weight of {rows} rows")
        if not groups or (self.order is None and columns % groups):
            raise WeightsError(f"{groups} groups do not divide {columns} columns")


def unpacked(tensor: Tensor, bits: int, order: tuple[int, ...] = IN_ORDER) -> Codes:
    """Codes of `bits` from words of 32, along the columns; the lowest bits come first."""
    if tensor.format != "I32":
        raise WeightsError(f"packed codes are {tensor.format}, not I32")
    if bits == 8:
        return tensor.data
    pairs = tensor.data.reshape(tensor.rows, tensor.columns, 4)
    found = np.empty((tensor.rows, tensor.columns, 8), np.uint8)
    for byte in range(4):
        found[..., order[2 * byte]] = pairs[..., byte] & 15
        found[..., order[2 * byte + 1]] = pairs[..., byte] >> 4
    return found.reshape(tensor.rows, -1)


def transposed(codes: NDArray[np.uint8]) -> Codes:
    """[columns, rows] as [rows, columns]."""
    return np.ascontiguousarray(codes.T)


def unpacked_down(tensor: Tensor, bits: int) -> Codes:
    """Codes [columns of the tensor, rows · 32 / bits], packed along the rows of the tensor."""
    if tensor.format != "I32":
        raise WeightsError(f"packed codes are {tensor.format}, not I32")
    return unpacked(plain(tensor.data.view(np.int32).T, "I32"), bits)


def tensor_of(weight: Grouped) -> Tensor:
    """The weight in the simplest format that holds it (see above)."""
    columns, groups = weight.codes.shape[1], weight.scales.shape[1]
    size = columns // groups
    if weight.order is not None or size % BLOCK or not holds(weight.scales):
        return float_form(values(weight))
    zero = 8 if weight.bits == 4 else 128
    scales = np.repeat(weight.scales, size // BLOCK, axis=1)
    if (weight.zeros == zero).all():
        if weight.bits == 4:
            return pack_q4_0(weight.codes, scales)
        return pack_q8_0((weight.codes ^ 128).view(np.int8), scales)
    minima = -(weight.zeros.astype(np.float32) * weight.scales)
    if weight.bits == 8 or not holds(minima):
        return float_form(values(weight))
    return pack_q4_1(weight.codes, scales, np.repeat(minima, size // BLOCK, axis=1))


def values(weight: Grouped) -> Floats:
    """The weight as float32 [rows, columns]."""
    columns = weight.codes.shape[1]
    order = weight.order
    if order is None:
        order = np.repeat(np.arange(weight.scales.shape[1]), columns // weight.scales.shape[1])
    elif order.shape != (columns,) or order.min() < 0 or order.max() >= weight.scales.shape[1]:
        raise WeightsError("a column's group is out of range")
    found = weight.codes.astype(np.float32)
    found -= weight.zeros[:, order]
    found *= weight.scales[:, order]
    return found


def awq(parts: dict[str, Tensor]) -> Tensor:
    """AutoAWQ's gemm: qweight I32 [inputs, outputs / 8], qzeros [groups, outputs / 8], scales
    [groups, outputs]."""
    codes = unpacked(parts["qweight"], 4, AWQ_ORDER)
    zeros = unpacked(parts["qzeros"], 4, AWQ_ORDER)
    scales = np.ascontiguousarray(parts["scales"].float32().T)
    return tensor_of(Grouped(transposed(codes), transposed(zeros), scales, 4))


def gptq(parts: dict[str, Tensor], bits: int, stored_less: int) -> Tensor:
    """AutoGPTQ's: qweight I32 [inputs · bits / 32, outputs], qzeros I32 [groups, outputs · bits /
    32] less `stored_less` (1 in version 1, where 0 wraps round), scales [groups, outputs], and
    g_idx I32 [inputs], each input's group."""
    codes = unpacked_down(parts["qweight"], bits)
    zeros = (unpacked(parts["qzeros"], bits) + np.uint8(stored_less)) & np.uint8(2**bits - 1)
    scales = np.ascontiguousarray(parts["scales"].float32().T)
    order = None
    if "g_idx" in parts:
        order = parts["g_idx"].data.view(np.int32)[0]
        groups = scales.shape[1]
        if order.shape != codes.shape[1:]:
            raise WeightsError(f"g_idx has {len(order)} entries for {codes.shape[1]} inputs")
        if (
            len(order) % groups == 0
            and (order == np.arange(len(order)) // (len(order) // groups)).all()
        ):
            order = None
    return tensor_of(Grouped(codes, transposed(zeros), scales, bits, order))


def packed(parts: dict[str, Tensor]) -> Tensor:
    """compressed-tensors' pack-quantized: weight_packed I32 [rows, columns · bits / 32] of codes
    plus 2^(bits - 1), weight_shape, weight_scale [rows, groups], and where it is not symmetric
    weight_zero_point, packed down its rows; weight_g_idx [columns] where groups are not in order.
    """
    words = parts["weight_packed"]
    rows, columns = (int(length) for length in parts["weight_shape"].data.view(np.int64)[0])
    bits = {8: 4, 4: 8}.get(columns // max(words.columns, 1))
    if bits is None or rows != words.rows or words.columns * (32 // bits) != columns:
        raise WeightsError(f"{words.rows} × {words.columns} words do not hold {rows} × {columns}")
    scales = scale_rows(parts["weight_scale"], rows)
    zeros = np.full(scales.shape, 2 ** (bits - 1), np.uint8)
    if "weight_zero_point" in parts:
        zeros = transposed(unpacked_down(parts["weight_zero_point"], bits))[:rows]
    order = parts["weight_g_idx"].data.view(np.int32)[0] if "weight_g_idx" in parts else None
    return tensor_of(Grouped(unpacked(words, bits), zeros, scales, bits, order))


def int8(parts: dict[str, Tensor]) -> Tensor:
    """compressed-tensors' int-quantized: weight I8 [rows, columns], weight_scale for all, a row or
    a group of a row, weight_zero_point I8 where it is not symmetric."""
    weight = parts["weight"]
    scales = scale_rows(parts["weight_scale"], weight.rows)
    zeros = np.full(scales.shape, 128, np.uint8)
    if "weight_zero_point" in parts:
        found = parts["weight_zero_point"]
        if found.format != "I8":
            raise WeightsError(f"zero points are {found.format}, not I8")
        zeros = np.broadcast_to(found.data ^ np.uint8(128), scales.shape)
    return tensor_of(Grouped(weight.data ^ np.uint8(128), zeros, scales, 8))


def scale_rows(tensor: Tensor, rows: int) -> Floats:
    """Scales [rows, groups] of one for all, one a row, or one a group."""
    scales = tensor.float32()
    if scales.size in (1, rows):
        scales = scales.reshape(-1, 1)
    return np.ascontiguousarray(np.broadcast_to(scales, (rows, scales.shape[1])))
