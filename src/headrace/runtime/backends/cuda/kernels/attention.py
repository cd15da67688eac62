"""Paged attention over a ragged batch that mixes prefill chunks and decodes, in one launch.

The host plans tiles (`..tiles`): a tile is a few adjacent query rows of one sequence, all query
heads of one KV head packed into its BLOCK_M rows, over a range of KV positions. A fixed number of
programs walks the list, whose length lies in device memory, so one captured graph serves all
lengths.

KV is cut at multiples of SPLIT positions, whatever the batch. Each split has a softmax of its own
(online, arXiv 2205.14135), and splits are folded into the result from the left: by the same
program where a tile has all of them, by `merge_splits` where each split is a tile of its own
(arXiv 2311.01282). Both fold alike, so a row's result does not depend on which it was.

Logarithms are of base 2: `scale` and sinks come multiplied by log2(e).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numbers import E4M3_BIAS, e4m3

# The fields of a tile, and of a merge, in int32.
TILE_FIELDS = tl.constexpr(8)  # sequence, row, rows, position, begin, end, partial, -
MERGE_FIELDS = tl.constexpr(4)  # row, rows, first partial, partials
FINISHED = tl.constexpr(-1)  # the `partial` of a tile that holds all splits of its rows


@triton.jit
def fold(highest, total, sums, split_highest, split_total, split_sums):
    """One split into those before it. An empty one changes nothing, to the bit."""
    new = tl.maximum(highest, split_highest)
    safe = tl.where(new == float("-inf"), 0.0, new)
    old_share = tl.exp2(highest - safe)
    share = tl.exp2(split_highest - safe)
    total = total * old_share + split_total * share
    sums = sums * old_share[:, None] + split_sums * share[:, None]
    return new, total, sums


@triton.jit
def finish(highest, total, sums, sinks, heads, valid, SINKS: tl.constexpr):
    """The weighted mean, with each head's sink where there are any."""
    if SINKS:
        sink = tl.load(sinks + heads, mask=valid, other=float("-inf"))
        new = tl.maximum(highest, sink)
        safe = tl.where(new == float("-inf"), 0.0, new)
        share = tl.exp2(highest - safe)
        total = total * share + tl.exp2(sink - safe)
        sums = sums * share[:, None]
    return sums / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
def load_entries(places, there, dtype: tl.constexpr, KV: tl.constexpr):
    """Keys or values; of 8 bits the codes, whose scales `load_scales` has."""
    found = tl.load(places, mask=there, other=0)
    if KV == "fp8":
        found = e4m3(found)
    return found.to(dtype)


@triton.jit
def load_scales(places, there, KV: tl.constexpr):
    """What the codes of `load_entries` are to be multiplied by."""
    found = tl.load(places, mask=there, other=0.0)
    if KV == "fp8":
        found = found * E4M3_BIAS
    return found


@triton.jit
def attend_split(
    queries,
    positions,
    valid,
    keys,
    values,
    key_scales,
    value_scales,
    table,
    begin,
    end,
    scale,
    cap,
    kv_heads,
    kv_head,
    head_size,
    WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
    CAPPED: tl.constexpr,
    KV: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Highest score, total weight and weighted sum of the KV entries begin to end of one split.

    `begin` is a multiple of BLOCK_N; a block that a row sees nothing of changes nothing of it.
    """
    offsets_d = tl.arange(0, queries.shape[1])
    inside = offsets_d < head_size
    highest = tl.full([queries.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([queries.shape[0]], tl.float32)
    sums = tl.zeros([queries.shape[0], queries.shape[1]], tl.float32)
    for near in range(begin, end, BLOCK_N):
        entries = near + tl.arange(0, BLOCK_N)
        there = entries < end
        pages = tl.load(table + entries // PAGE, mask=there, other=0)
        slots = pages.to(tl.int64) * PAGE + entries % PAGE
        heads_at = slots * kv_heads + kv_head
        places = (heads_at * head_size)[:, None] + offsets_d[None, :]
        loaded = there[:, None] & inside[None, :]
        key = load_entries(keys + places, loaded, queries.dtype, KV)
        scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * scale
        if KV != "float":
            scores = scores * load_scales(key_scales + heads_at, there, KV)[None, :]
        if CAPPED:  # cap · tanh(score / cap)
            scores = cap * (2.0 * tl.sigmoid(2.0 * scores / cap) - 1.0)
        distance = positions[:, None] - entries[None, :]
        visible = there[None, :] & valid[:, None]
        if CAUSAL:
            visible = visible & (distance >= 0)
        if WINDOW > 0:
            visible = visible & (tl.abs(distance) < WINDOW)
        scores = tl.where(visible, scores, float("-inf"))
        new = tl.maximum(highest, tl.max(scores, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        weights = tl.exp2(scores - safe[:, None])
        kept = tl.exp2(highest - safe)
        value = load_entries(values + places, loaded, queries.dtype, KV)
        total = total * kept + tl.sum(weights, 1)
        if KV != "float":
            weights = weights * load_scales(value_scales + heads_at, there, KV)[None, :]
        attended = tl.dot(weights.to(queries.dtype), value, input_precision="ieee")
        sums = sums * kept[:, None] + attended
        highest = new
    return highest, total, sums


@triton.jit
def attend_tiles(
    out,
    qkv,
    keys,
    values,
    key_scales,
    value_scales,
    sinks,
    partial_sums,
    partial_stats,
    tiles,
    counts,
    tables,
    scale,
    cap,
    kv_heads,
    head_size,
    GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
    KV: tl.constexpr,
    PAGE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Every tile of the step, for every KV head.

    `qkv` [rows, (heads + 2 kv_heads) · head_size], `keys` and `values` [slots, kv_heads,
    head_size] of one layer, where they are codes with scales [slots, kv_heads]; `out` [rows,
    heads · head_size]. `counts` holds the number of tiles and the width of `tables`.
    """
    table_width = tl.load(counts + 1)
    width = GROUP * kv_heads * head_size
    offsets_m = tl.arange(0, BLOCK_M)
    offsets_d = tl.arange(0, BLOCK_D)
    query = offsets_m // GROUP
    for item in range(tl.program_id(0), tl.load(counts) * kv_heads, tl.num_programs(0)):
        tile = tiles + (item // kv_heads) * TILE_FIELDS
        kv_head = item % kv_heads
        table = tables + tl.load(tile) * table_width
        begin = tl.load(tile + 4)
        end = tl.load(tile + 5)
        partial = tl.load(tile + 6)
        heads = kv_head * GROUP + offsets_m % GROUP
        rows = (tl.load(tile + 1) + query).to(tl.int64)
        valid = query < tl.load(tile + 2)
        shown = valid[:, None] & (offsets_d < head_size)[None, :]
        at = (rows * (width + 2 * kv_heads * head_size) + heads * head_size)[:, None]
        queries = tl.load(qkv + at + offsets_d[None, :], mask=shown, other=0.0)
        highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for split in range(begin // SPLIT * SPLIT, end, SPLIT):
            more_highest, more_total, more_sums = attend_split(
                queries,
                tl.load(tile + 3) + query,
                valid,
                keys,
                values,
                key_scales,
                value_scales,
                table,
                tl.maximum(split, begin // BLOCK_N * BLOCK_N),
                tl.minimum(split + SPLIT, end),
                scale,
                cap,
                kv_heads,
                kv_head,
                head_size,
                WINDOW,
                CAUSAL,
                CAPPED,
                KV,
                PAGE,
                BLOCK_N,
            )
            highest, total, sums = fold(highest, total, sums, more_highest, more_total, more_sums)
        if partial == FINISHED:
            result = finish(highest, total, sums, sinks, heads, valid, SINKS)
            place = (rows * width + heads * head_size)[:, None] + offsets_d[None, :]
            tl.store(out + place, result.to(out.dtype.element_ty), mask=shown)
        else:
            kept_at = (partial * kv_heads + kv_head) * BLOCK_M + offsets_m
            tl.store(partial_stats + kept_at * 2, highest)
            tl.store(partial_stats + kept_at * 2 + 1, total)
            tl.store(partial_sums + kept_at[:, None] * BLOCK_D + offsets_d[None, :], sums)


@triton.jit
def merge_splits(
    out,
    sinks,
    partial_sums,
    partial_stats,
    merges,
    counts,
    kv_heads,
    head_size,
    GROUP: tl.constexpr,
    SINKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Fold the partial results of rows whose splits were tiles of their own."""
    merge_count = tl.load(counts + 2)
    offsets_m = tl.arange(0, BLOCK_M)
    offsets_d = tl.arange(0, BLOCK_D)
    width = GROUP * kv_heads * head_size
    for item in range(tl.program_id(0), merge_count * kv_heads, tl.num_programs(0)):
        merge = merges + (item // kv_heads) * MERGE_FIELDS
        kv_head = item % kv_heads
        row = tl.load(merge)
        valid = offsets_m // GROUP < tl.load(merge + 1)
        heads = kv_head * GROUP + offsets_m % GROUP
        first = tl.load(merge + 2)
        highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for partial in range(first, first + tl.load(merge + 3)):
            at = (partial * kv_heads + kv_head) * BLOCK_M + offsets_m
            highest, total, sums = fold(
                highest,
                total,
                sums,
                tl.load(partial_stats + at * 2),
                tl.load(partial_stats + at * 2 + 1),
                tl.load(partial_sums + at[:, None] * BLOCK_D + offsets_d[None, :]),
            )
        result = finish(highest, total, sums, sinks, heads, valid, SINKS)
        place = (row + offsets_m // GROUP).to(tl.int64) * width + heads * head_size
        tl.store(
            out + place[:, None] + offsets_d[None, :],
            result.to(out.dtype.element_ty),
            mask=valid[:, None] & (offsets_d < head_size)[None, :],
        )
