"""Products of E4M3 with E4M3: many rows, for chips whose tensor cores multiply 8-bit floats.

Rows are rounded with a scale of their own (`encode_rows`, or the norm before them); the weight has
a scale a row and block of 128 inputs. Sums are float32: the hardware's within a block, ours over
blocks, so that the precision the hardware adds with matters little.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numbers import to_e4m3


@triton.jit
def write_codes(codes, scales, row, offsets, values, inside, width):
    """A row's values as E4M3 codes, and the row's scale: its largest magnitude over 448."""
    top = tl.max(tl.where(inside, tl.abs(values), 0.0), 0)
    inverse = tl.where(top > 1e-30, 448.0 / top, 0.0)
    tl.store(codes + row * width + offsets, to_e4m3(values * inverse), mask=inside)
    tl.store(scales + row, top / 448.0)


@triton.jit
def encode_rows(codes, scales, source, width, BLOCK: tl.constexpr):
    """One row of `source` [rows, width]."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    inside = offsets < width
    values = tl.load(source + row * width + offsets, mask=inside, other=0.0).to(tl.float32)
    write_codes(codes, scales, row, offsets, values, inside, width)


@triton.jit
def project_codes(
    out,
    codes,
    row_scales,
    weight,
    scales,
    bias,
    rows,
    outputs,
    inputs,
    out_width,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_N outputs of ROWS rows. `codes` [rows, inputs] and `weight` [outputs, inputs] uint8,
    `row_scales` [rows], `scales` [outputs, inputs / BLOCK_K]; rows of `out` are `out_width` apart.
    """
    offsets_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offsets_m = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    some_n = offsets_n < outputs
    some_m = offsets_m < rows
    places = tl.arange(0, BLOCK_K)
    source = codes + offsets_m.to(tl.int64)[:, None] * inputs + places[None, :]
    matrix = weight + offsets_n.to(tl.int64)[None, :] * inputs + places[:, None]
    scale_at = scales + offsets_n.to(tl.int64) * (inputs // BLOCK_K)
    sums = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for block in range(0, inputs // BLOCK_K):
        x = tl.load(source + block * BLOCK_K, mask=some_m[:, None], other=0)
        w = tl.load(matrix + block * BLOCK_K, mask=some_n[None, :], other=0)
        part = tl.dot(x.to(tl.float8e4nv, bitcast=True), w.to(tl.float8e4nv, bitcast=True))
        sums += part * tl.load(scale_at + block, mask=some_n, other=0.0)[None, :]
    sums = sums * tl.load(row_scales + offsets_m, mask=some_m, other=0.0)[:, None]
    if BIAS:
        sums += tl.load(bias + offsets_n, mask=some_n, other=0.0).to(tl.float32)[None, :]
    place = offsets_m.to(tl.int64)[:, None] * out_width + offsets_n[None, :]
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=some_m[:, None] & some_n[None, :])
