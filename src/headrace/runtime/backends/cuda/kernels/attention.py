"""Paged attention over a ragged batch that mixes prefill chunks and decodes, in one launch.

The host plans tiles (`..tiles`): a tile is a few query rows, all query heads of one KV head packed
into its BLOCK_M rows, over a range of KV positions. The rows are adjacent ones of one sequence, or
decodes of several sequences that have those positions in the same blocks: then KV is read once
for all of them (cascade). A fixed number of programs works through the list, the longest tiles
first, each taking the next when it is done with one; the list's length lies in device memory, so
one captured graph serves all lengths.

KV is cut at multiples of SPLIT positions, whatever the batch. Each split has a softmax of its own
(online, arXiv 2205.14135), and splits are folded into the result from the left: within a tile
where it has several of them, by `merge_splits` where they were tiles of their own (arXiv
2311.01282). Both fold alike, so a row's result does not depend on which it was.

Logarithms are of base 2: `scale` and sinks come multiplied by log2(e).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .chain import wait
from .numbers import E4M3_BIAS, e4m3

# The fields of a tile, and of a merge, in int32.
TILE_FIELDS = tl.constexpr(8)  # sequence, first row, rows, whether shared, begin, end, slot, -
MERGE_FIELDS = tl.constexpr(4)  # row, first partial, partials, -
FINISHED = tl.constexpr(-1)  # the slot of a tile that holds all splits of its rows
TAKEN = tl.constexpr(3)  # where `counts` has the tiles that were taken, but for each first


@triton.jit
def fold(highest, total, sums, split_highest, split_total, split_sums):
    """One split into those before it. An empty one changes nothing, to the bit."""
    new = tl.maximum(highest, split_highest)
    safe = tl.where(new == float("-inf"), 0.0, new)
    old_share = tl.exp2(highest - safe)
    share = tl.exp2(split_highest - safe)
    # said to be fused, for the two kernels that fold to be compiled alike
    total = tl.fma(total, old_share, split_total * share)
    old_shares = tl.broadcast_to(old_share[:, None], sums.shape)
    sums = tl.fma(sums, old_shares, split_sums * share[:, None])
    return new, total, sums


@triton.jit
def finish(highest, total, sums, sinks, heads, valid, SINKS: tl.constexpr):
    """The weighted mean, with each head's sink where there are any."""
    if SINKS:
        sink = tl.load(sinks + heads, mask=valid, other=float("-inf"))
        new = tl.maximum(highest, sink)
        safe = tl.where(new == float("-inf"), 0.0, new)
        share = tl.exp2(highest - safe)
        total = tl.fma(total, share, tl.exp2(sink - safe))
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
def load_rows(tile, members, query, valid):
    """The rows of a tile: adjacent ones, or those that `members` names from its first on."""
    places = tl.load(tile + 1) + query
    named = valid & (tl.load(tile + 3) != 0)
    rows = tl.load(members + places, mask=named, other=0) + tl.where(named, 0, places)
    return rows.to(tl.int64)


@triton.jit
def store_partial(partial_sums, partial_stats, at, highest, total, sums, valid, shown):
    """What a tile leaves, of each of its BLOCK_M rows at a place of its own."""
    tl.store(partial_stats + at * 2, highest, mask=valid)
    tl.store(partial_stats + at * 2 + 1, total, mask=valid)
    width: tl.constexpr = sums.shape[1]
    places = at[:, None] * width + tl.arange(0, width)[None, :]
    tl.store(partial_sums + places, sums, mask=shown)


@triton.jit
def attend(
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
    SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Highest score, total weight and weighted sum of the KV entries begin to end, by splits.

    One loop over all blocks, so that loads run ahead from one split into the next. A block that a
    row sees nothing of changes nothing of it.
    """
    offsets_d = tl.arange(0, queries.shape[1])
    inside = offsets_d < head_size
    nothing = tl.full([queries.shape[0]], float("-inf"), tl.float32)
    highest = nothing
    total = tl.zeros([queries.shape[0]], tl.float32)
    sums = tl.zeros([queries.shape[0], queries.shape[1]], tl.float32)
    done_highest = highest
    done_total = total
    done_sums = sums
    for near in range(begin // BLOCK_N * BLOCK_N, end, BLOCK_N):
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
        visible = there[None, :] & valid[:, None]
        if CAUSAL:
            visible = visible & (positions[:, None] >= entries[None, :])
        if WINDOW > 0:
            visible = visible & (tl.abs(positions[:, None] - entries[None, :]) < WINDOW)
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
        if (near + BLOCK_N) % SPLIT == 0:
            done_highest, done_total, done_sums = fold(
                done_highest, done_total, done_sums, highest, total, sums
            )
            highest = nothing
            total = tl.zeros_like(total)
            sums = tl.zeros_like(sums)
    return fold(done_highest, done_total, done_sums, highest, total, sums)


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
    members,
    bases,
    counts,
    positions,
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
    CHAINED: tl.constexpr,
    PAGE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Every tile of the step, for every KV head.

    `qkv` [rows, (heads + 2 kv_heads) · head_size], `keys` and `values` [slots, kv_heads,
    head_size] of one layer, where they are codes with scales [slots, kv_heads]; `out` [rows,
    heads · head_size]. `partial_sums` [partials, heads, BLOCK_D], `partial_stats` [partials,
    heads, 2]: a row's are those of its base plus slot. `counts` holds the number of tiles, the
    width of `tables`, the number of merges, and 0.
    """
    items = tl.load(counts) * kv_heads
    query_heads = GROUP * kv_heads
    width = query_heads * head_size
    offsets_m = tl.arange(0, BLOCK_M)
    offsets_d = tl.arange(0, BLOCK_D)
    query = offsets_m // GROUP
    item = tl.program_id(0)
    while item < items:
        tile = tiles + (item // kv_heads) * TILE_FIELDS
        kv_head = item % kv_heads
        table = tables + tl.load(tile) * tl.load(counts + 1)
        valid = query < tl.load(tile + 2)
        rows = load_rows(tile, members, query, valid)
        slot = tl.load(tile + 6)
        heads = kv_head * GROUP + offsets_m % GROUP
        shown = valid[:, None] & (offsets_d < head_size)[None, :]
        at = (rows * (width + 2 * kv_heads * head_size) + heads * head_size)[:, None] + offsets_d
        wait(CHAINED)
        queries = tl.load(qkv + at, mask=shown, other=0.0)
        highest, total, sums = attend(
            queries,
            tl.load(positions + rows, mask=valid, other=0),
            valid,
            keys,
            values,
            key_scales,
            value_scales,
            table,
            tl.load(tile + 4),
            tl.load(tile + 5),
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
            SPLIT,
            BLOCK_N,
        )
        if slot == FINISHED:
            result = finish(highest, total, sums, sinks, heads, valid, SINKS)
            place = (rows * width + heads * head_size)[:, None] + offsets_d[None, :]
            tl.store(out + place, result.to(out.dtype.element_ty), mask=shown)
        else:
            partial = (tl.load(bases + rows, mask=valid, other=0) + slot).to(tl.int64)
            kept_at = partial * query_heads + heads
            store_partial(partial_sums, partial_stats, kept_at, highest, total, sums, valid, shown)
        item = items
        if items > tl.num_programs(0):
            item = tl.num_programs(0) + tl.atomic_add(counts + TAKEN, 1, sem="relaxed")
    wait(CHAINED)


@triton.jit
def merge_splits(
    out,
    sinks,
    partial_sums,
    partial_stats,
    merges,
    counts,
    heads,
    head_size,
    SINKS: tl.constexpr,
    CHAINED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Fold the partial results of rows that no tile finished, head by head.

    It puts `counts` back for the next attention of the step.
    """
    wait(CHAINED)
    if tl.program_id(0) == 0:
        tl.store(counts + TAKEN, 0)
    one = tl.arange(0, 1)
    offsets_d = tl.arange(0, BLOCK_D)
    shown = (offsets_d < head_size)[None, :]
    for item in range(tl.program_id(0), tl.load(counts + 2) * heads, tl.num_programs(0)):
        merge = merges + (item // heads) * MERGE_FIELDS
        head = item % heads + one
        first_at = tl.load(merge + 1).to(tl.int64) * heads + head
        highest = tl.full([1], float("-inf"), tl.float32)
        total = tl.zeros([1], tl.float32)
        sums = tl.zeros([1, BLOCK_D], tl.float32)
        for number in tl.range(0, tl.load(merge + 2), loop_unroll_factor=8):
            at = first_at + number * heads
            highest, total, sums = fold(
                highest,
                total,
                sums,
                tl.load(partial_stats + at * 2),
                tl.load(partial_stats + at * 2 + 1),
                tl.load(partial_sums + at[:, None] * BLOCK_D + offsets_d[None, :], mask=shown),
            )
        result = finish(highest, total, sums, sinks, head, one == 0, SINKS)
        place = tl.load(merge).to(tl.int64) * (heads * head_size) + head * head_size
        where = out + place[:, None] + offsets_d[None, :]
        tl.store(where, result.to(out.dtype.element_ty), mask=shown)
