"""The plan of a step's attention: which rows over which KV entries, as the kernels read it.

A tile is some rows over some splits of KV. Splits are folded from the left, so a tile may hold all
splits of its rows, or their first ones; of the others each is a tile of its own. What a tile does
not finish is left in each row's slot for the (last) split. A plan says who computes a split, not
how: a row has the same bits under every plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base import Batch, Int32
from .prefixes import SPLIT, Run

FINISHED = -1
# Tiles are cut that are longer than an eighth of what a program has to do: so the last program ends
# late by that at most, and no more partial results are written than that asks for.
GRAIN = 8
# Partial results (a row's, of all heads) that a step may leave: in a model of 32 heads of 128 they
# take 128 MiB. A step that would leave more is cut less.
MOST_PARTIALS = 8192
# Reads of a split that a step's shared tiles must save, over all rows, for there to be any. Chosen,
# not measured: `benchmarks/gpu.py` times one prefix. Sharing adds no work on the device but to look
# rows up; the host sorts tables, for some 100 us at 256 rows, beside a step that runs.
LEAST_SAVED = 4


@dataclass(frozen=True, slots=True)
class Tiles:
    """The arrays of `kernels.attention`, and how many partial results the tiles leave behind."""

    tiles: Int32  # [tiles, 8]
    merges: Int32  # [rows that no tile finishes, 4]
    members: Int32  # the rows of shared tiles
    bases: Int32  # [rows] a row's first partial result, less the split that it is of
    partials: int


class Spans(NamedTuple):
    """Rows over KV entries, each span to become one tile or one a split. Arrays of one length."""

    sequence: NDArray[np.int64]  # whose blocks are read
    first: NDArray[np.int64]  # row, or place in `Tiles.members`
    rows: NDArray[np.int64]
    shared: NDArray[np.int64]  # 1 where `first` is a place
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    leads: NDArray[np.int64]  # 1 where it begins with the first split of its rows

    @property
    def splits(self) -> NDArray[np.int64]:
        """How many splits each has a part in."""
        return -(-self.end // SPLIT) - self.begin // SPLIT


def plan_tiles(
    batch: Batch,
    tile_rows: int,
    window: int,
    causal: bool,
    programs: int,
    runs: Sequence[Run] = (),
) -> Tiles:
    """Tiles of at most `tile_rows` query rows, for `programs` programs a KV head.

    Sequences of `runs` have the splits they share in common tiles. The longest tiles come first.
    """
    own = own_spans(batch, tile_rows, window, causal)
    for grain, some in (GRAIN, runs), (1, runs), (1, ()):
        plan = divide(batch, own, shared_spans(some, own, tile_rows), grain * programs)
        if plan.partials <= MOST_PARTIALS:
            return plan
    return divide(batch, own, shared_spans((), own, tile_rows), 0)


def divide(batch: Batch, own: Spans, alike: tuple[Spans, NDArray[np.int64]], parts: int) -> Tiles:
    """Cut what can be cut and is longer than one of `parts` of the step."""
    shared, members = alike
    tile_of_member = np.searchsorted(own.sequence, members)
    span_of_member = np.repeat(np.arange(len(shared.rows)), shared.rows)
    begin = own.begin.copy()
    np.maximum.at(begin, tile_of_member, shared.end[span_of_member])
    alone = np.ones(len(own.rows), np.bool_)
    alone[tile_of_member] = False
    own = own._replace(begin=begin, leads=alone.astype(np.int64))

    spans = Spans(*(np.concatenate(both) for both in zip(shared, own, strict=True)))
    lengths = spans.end - spans.begin
    cut = (spans.leads == 0) | (lengths * parts > lengths.sum())
    first_slots = np.where(cut, spans.begin // SPLIT, -(-spans.end // SPLIT) - 1)
    whole_rows = np.concatenate([np.zeros(len(shared.rows), np.bool_), alone])
    finished = whole_rows & (~cut | (spans.splits == 1))

    slots = first_slots[len(shared.rows) :].copy()
    np.minimum.at(slots, tile_of_member, first_slots[span_of_member])
    left = np.where(finished[len(shared.rows) :], 0, -(-own.end // SPLIT) - slots)
    counts = np.repeat(left, own.rows)
    firsts = np.cumsum(counts) - counts
    merged = np.flatnonzero(counts)
    merges = np.stack([merged, firsts[merged], counts[merged], merged * 0], axis=1)
    return Tiles(
        tiles=cut_spans(spans, cut, finished),
        merges=merges.astype(np.int32),
        members=batch.row_starts[members].astype(np.int32),
        bases=(firsts - np.repeat(slots, own.rows)).astype(np.int32),
        partials=int(counts.sum()),
    )


def own_spans(batch: Batch, tile_rows: int, window: int, causal: bool) -> Spans:
    """What each sequence's rows see, `tile_rows` rows at a time, in order of the rows."""
    counts = np.diff(batch.row_starts).astype(np.int64)
    tiles = -(-counts // tile_rows)
    sequence = np.repeat(np.arange(len(counts)), tiles)
    index = np.arange(len(sequence)) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    rows = np.minimum(tile_rows, counts[sequence] - index * tile_rows)
    context = batch.context_lengths[sequence].astype(np.int64)
    position = context - counts[sequence] + index * tile_rows
    begin = np.maximum(position - window + 1, 0) if window else np.zeros_like(position)
    end = position + rows if causal else context
    first = batch.row_starts[sequence] + index * tile_rows
    return Spans(sequence, first, rows, rows * 0, begin, end, rows * 0 + 1)


def shared_spans(
    runs: Sequence[Run], own: Spans, tile_rows: int
) -> tuple[Spans, NDArray[np.int64]]:
    """The tiles of rows that share splits, and whose rows those are, tile by tile.

    None where they would save less than LEAST_SAVED. Where rows see a window of KV, those that
    see the same splits come together, and rows that see nothing of a run are none of its members.
    """
    nothing = Spans(*np.zeros((7, 0), np.int64)), np.zeros(0, np.int64)
    if tile_rows == 1 or not runs:
        return nothing
    run = np.repeat(np.arange(len(runs)), [len(one.sequences) for one in runs])
    members = np.concatenate([one.sequences for one in runs]).astype(np.int64)
    run_begin, run_end = np.array([one[1:] for one in runs], np.int64).T * SPLIT
    begins = own.begin[np.searchsorted(own.sequence, members)]
    order = np.lexsort((begins, run))
    order = order[begins[order] < run_end[run[order]]]
    run, members, begins = run[order], members[order], begins[order]
    place = np.arange(len(run)) - np.searchsorted(run, run)
    first = np.flatnonzero(place % tile_rows == 0)
    rows = np.diff(first, append=len(run))
    least, begin, end = begins[first], run_begin[run[first]], run_end[run[first]]
    leads = (least >= begin).astype(np.int64)
    begin = np.maximum(begin, least)
    if ((rows - 1) * (end - begin)).sum() < LEAST_SAVED * SPLIT:
        return nothing
    return Spans(members[first], first, rows, rows * 0 + 1, begin, end, leads), members


def cut_spans(spans: Spans, cut: NDArray[np.bool_], finished: NDArray[np.bool_]) -> Int32:
    """Tiles as the kernel reads them, the longest first, so that the last to end are short."""
    pieces = np.where(cut, spans.splits, 1)
    span = np.repeat(np.arange(len(pieces)), pieces)
    number = np.arange(len(span)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin, end = spans.begin[span], spans.end[span]
    split = (begin // SPLIT + number) * SPLIT
    begin = np.where(cut[span], np.maximum(begin, split), begin)
    end = np.where(cut[span], np.minimum(end, split + SPLIT), end)
    slot = np.where(finished[span], FINISHED, -(-end // SPLIT) - 1)
    fields = [spans.sequence, spans.first, spans.rows, spans.shared]
    tiles = np.stack([*(field[span] for field in fields), begin, end, slot, slot * 0], axis=1)
    return tiles[np.argsort(begin - end, kind="stable")].astype(np.int32)
