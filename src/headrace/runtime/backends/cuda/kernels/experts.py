"""A mixture of experts over pairs of (row, chosen expert): which weights are read, memory says.

The pairs are sorted by expert and cut into tiles of at most ROWS pairs of one expert
(`order_pairs`), so that a program reads its part of an expert's weights once for all of a tile's
rows. How many tiles there are is bounded by the number of pairs; those that are not needed end at
once. Nothing comes back to the host, so a step with experts can be captured.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .linear import multiply_block


@triton.jit
def project_pairs(
    out,
    rows_in,
    weight,
    highs,
    scales,
    minima,
    bias,
    order,
    tile_starts,
    tile_ends,
    tile_experts,
    outputs,
    inputs,
    shared,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    HIGH: tl.constexpr,
    MINIMA: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_N outputs of a tile of pairs.

    `weight` is the experts' on top of each other [experts · outputs, inputs], `out` [pairs,
    outputs]. Pair p reads row p // shared of `rows_in`.
    """
    tile = tl.program_id(1)
    begin = tl.load(tile_starts + tile)
    end = tl.load(tile_ends + tile)
    if begin >= end:
        return
    expert = tl.load(tile_experts + tile).to(tl.int64)
    offsets_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    places = begin + tl.arange(0, ROWS)
    some_n = offsets_n < outputs
    some_m = places < end
    pair = tl.load(order + places, mask=some_m, other=0).to(tl.int64)
    row = expert * outputs + offsets_n
    source = rows_in + (pair // shared)[:, None] * inputs
    sums = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for near in range(0, inputs, BLOCK_K):
        sums = multiply_block(
            sums,
            source,
            weight,
            highs,
            scales,
            minima,
            row,
            near,
            inputs,
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
        sums += tl.load(bias + row, mask=some_n, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out + pair[:, None] * outputs + offsets_n[None, :],
        sums.to(out.dtype.element_ty),
        mask=some_m[:, None] & some_n[None, :],
    )
