"""Matrix products with few rows, bound by reading the weights, of every format.

out = rows @ weight.T; a weight is [outputs, inputs]. A program holds BLOCK_N outputs and reads
their part of the weight once for up to ROWS rows. Where there are too few outputs to fill a
device, the inputs are cut into SPLITS parts, whose float32 sums `add_splits` adds in order. SPLITS
comes from the weight's shape alone, so a row's result does not depend on how many rows there are.

A weight is what `..weights.DeviceWeight` says: floats, or codes of 8 bits or of 4 to 6, of which a
byte holds the low halves of two. A value is code · scale + minimum of its group.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .chain import fetch_rows, wait
from .numbers import E2M1_BIAS, E4M3_BIAS, e2m1, e4m3


@triton.jit
def widen(codes, scales, minima, groups, there, KIND: tl.constexpr, MINIMA: tl.constexpr):
    """Codes as float32 values, those of a group by its scale and minimum."""
    if KIND == "fp8":
        values = e4m3(codes).to(tl.float32) * E4M3_BIAS
    elif KIND == "mxfp4":
        values = e2m1(codes).to(tl.float32) * E2M1_BIAS
    else:
        values = codes.to(tl.float32)
    values = values * tl.load(scales + groups, mask=there, other=0.0).to(tl.float32)
    if MINIMA:
        values = values + tl.load(minima + groups, mask=there, other=0.0).to(tl.float32)
    return values


@triton.jit
def add_highs(codes, highs, row_at, columns, there, HIGH: tl.constexpr):
    """Codes with their bits above the fourth; `row_at` are the first bytes of their rows."""
    if HIGH > 0:
        share: tl.constexpr = 8 // HIGH  # values a byte
        found = tl.load(highs + row_at + columns // share, mask=there, other=0)
        bits = found >> (columns % share * HIGH).to(tl.uint8) & (1 << HIGH) - 1
        codes = codes | (bits << 4).to(codes.dtype)
    return codes


@triton.jit
def multiply_nibbles(
    sums,
    source,
    weight,
    highs,
    scales,
    minima,
    row,
    near,
    end,
    inputs,
    some_m,
    some_n,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    HIGH: tl.constexpr,
    MINIMA: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`sums` with BLOCK_K inputs more: those of the low halves of the bytes, those of the high."""
    places = tl.arange(0, BLOCK_K // 2)
    low = near + places // 16 * 32 + places % 16
    there = some_n[:, None] & (low < end)[None, :]
    loaded = some_m[:, None] & (low < end)[None, :]
    at = row[:, None] * (inputs // 2) + (near // 2 + places)[None, :]
    codes = tl.load(weight + at, mask=there, other=0)
    row_at = row[:, None] * (inputs * HIGH // 8)
    for half in tl.static_range(2):
        columns = (low + 16 * half)[None, :]
        some = codes >> 4 if half else codes & 15
        some = add_highs(some, highs, row_at, columns, there, HIGH)
        groups = row[:, None] * (inputs // GROUP) + columns // GROUP
        values = widen(some, scales, minima, groups, there, KIND, MINIMA)
        x = tl.load(source + columns, mask=loaded, other=0.0)
        sums = tl.dot(x, tl.trans(values.to(x.dtype)), sums, input_precision="ieee")
    return sums


@triton.jit
def multiply_block(
    sums,
    source,
    weight,
    highs,
    scales,
    minima,
    row,
    near,
    end,
    inputs,
    some_m,
    some_n,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    HIGH: tl.constexpr,
    MINIMA: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`sums` [rows, outputs] with the inputs near to near + BLOCK_K more, before `end`.

    `row` are the weight's rows, `source` points at the rows' first inputs [rows, 1].
    """
    if KIND == "int4" or KIND == "mxfp4":
        sums = multiply_nibbles(
            sums,
            source,
            weight,
            highs,
            scales,
            minima,
            row,
            near,
            end,
            inputs,
            some_m,
            some_n,
            KIND,
            GROUP,
            HIGH,
            MINIMA,
            BLOCK_K,
        )
    else:
        offsets_k = near + tl.arange(0, BLOCK_K)
        some_k = (offsets_k < end)[None, :]
        there = some_n[:, None] & some_k
        at = row[:, None] * inputs + offsets_k[None, :]
        values = tl.load(weight + at, mask=there, other=0)
        if KIND != "dense":
            groups = row[:, None] * (inputs // GROUP) + (offsets_k // GROUP)[None, :]
            values = widen(values, scales, minima, groups, there, KIND, MINIMA)
        x = tl.load(source + offsets_k[None, :], mask=some_m[:, None] & some_k, other=0.0)
        sums = tl.dot(x, tl.trans(values.to(x.dtype)), sums, input_precision="ieee")
    return sums


@triton.jit
def project_rows(
    out,
    rows_in,
    weight,
    highs,
    scales,
    minima,
    bias,
    rows,
    outputs,
    inputs,
    part,
    out_width,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    HIGH: tl.constexpr,
    MINIMA: tl.constexpr,
    BIAS: tl.constexpr,
    CHAINED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_N outputs of ROWS rows, over `part` inputs; rows of `out` are `out_width` apart.

    Where inputs are cut, `out` is float32 [parts, rows, outputs], and there is no bias.
    """
    offsets_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offsets_m = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    begin = tl.program_id(2) * part
    end = tl.minimum(begin + part, inputs)
    some_n = offsets_n < outputs
    some_m = offsets_m < rows
    row = offsets_n.to(tl.int64)
    source = rows_in + offsets_m.to(tl.int64)[:, None] * inputs
    sums = tl.zeros([ROWS, BLOCK_N], tl.float32)
    if CHAINED:
        share: tl.constexpr = 2 if KIND == "int4" or KIND == "mxfp4" else 1  # inputs a value
        fetch_rows(weight, row, outputs, inputs // share, begin // share)
    wait(CHAINED)
    for near in range(begin, end, BLOCK_K):
        sums = multiply_block(
            sums,
            source,
            weight,
            highs,
            scales,
            minima,
            row,
            near,
            end,
            inputs,
            some_m,
            some_n,
            KIND,
            GROUP,
            HIGH,
            MINIMA,
            BLOCK_K,
        )
    if BIAS:
        sums = sums + tl.load(bias + offsets_n, mask=some_n, other=0.0).to(tl.float32)[None, :]
    place = (tl.program_id(2).to(tl.int64) * rows + offsets_m)[:, None] * out_width
    tl.store(
        out + place + offsets_n[None, :],
        sums.to(out.dtype.element_ty),
        mask=some_m[:, None] & some_n[None, :],
    )


@triton.jit
def add_splits(
    out,
    sums,
    bias,
    size,
    outputs,
    out_width,
    BIAS: tl.constexpr,
    CHAINED: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum of SPLITS parts, in order; `size` is rows · outputs, as in `project_rows`."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    wait(CHAINED)
    total = tl.load(sums + offsets, mask=inside, other=0.0)
    for split in range(1, SPLITS):
        total += tl.load(sums + split * size + offsets, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias + offsets % outputs, mask=inside, other=0.0).to(tl.float32)
    place = (offsets // outputs).to(tl.int64) * out_width + offsets % outputs
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def embed_rows(
    out,
    table,
    highs,
    scales,
    minima,
    tokens,
    first,
    rows,
    width,
    factor,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    HIGH: tl.constexpr,
    MINIMA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`program.Embed` of one row's part; the table has `rows` tokens from `first` on."""
    row = tl.program_id(0)
    token = tl.load(tokens + row).to(tl.int64) - first
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = offsets < width
    inside = within & (token >= 0) & (token < rows)
    if KIND == "dense":
        values = tl.load(table + token * width + offsets, mask=inside, other=0).to(tl.float32)
    else:
        if KIND == "int4" or KIND == "mxfp4":
            at = token * (width // 2) + offsets // 32 * 16 + offsets % 16
            codes = tl.load(table + at, mask=inside, other=0)
            codes = tl.where(offsets % 32 < 16, codes & 15, codes >> 4)
            codes = add_highs(codes, highs, token * (width * HIGH // 8), offsets, inside, HIGH)
        else:
            codes = tl.load(table + token * width + offsets, mask=inside, other=0)
        groups = token * (width // GROUP) + offsets // GROUP
        values = widen(codes, scales, minima, groups, inside, KIND, MINIMA)
    values = tl.where(inside, values * factor, 0.0)
    place = row.to(tl.int64) * width + offsets
    tl.store(out + place, values.to(out.dtype.element_ty), mask=within)
