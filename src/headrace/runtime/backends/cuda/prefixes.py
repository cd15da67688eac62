"""Which decodes of a step read the same KV: rows whose block tables begin alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..base import Batch, Int32

SPLIT = 256  # KV entries that are one softmax; a constant of the arithmetic, not of the batch


class Run(NamedTuple):
    """Sequences of one row each that have the same blocks in the splits `begin` to `end`."""

    sequences: Int32
    begin: int
    end: int


def shared_runs(batch: Batch, block_size: int) -> list[Run]:
    """All that is shared, a sequence's runs following each other from split 0 on.

    Splits are whole: every sequence of a run has all of their entries. Sorted by their tables,
    sequences that begin alike are neighbours; how long neighbours are alike then gives the tree
    of what all, what some and what few have in common.
    """
    ordered = sorted_by_table(batch)
    if not len(ordered):
        return []
    tables = batch.block_tables[ordered]
    alike = tables[1:] == tables[:-1]
    blocks = np.where(alike.all(axis=1), alike.shape[1], alike.argmin(axis=1))
    whole = batch.context_lengths[ordered] // SPLIT
    splits = np.minimum(blocks * block_size // SPLIT, np.minimum(whole[1:], whole[:-1]))
    runs = []
    open_runs = [(0, 0)]  # the first of `ordered`, and how many splits are alike since
    for last, depth in enumerate([*splits.tolist(), 0]):
        first = last
        while open_runs[-1][1] > depth:
            first, end = open_runs.pop()
            runs.append(Run(ordered[first : last + 1], max(open_runs[-1][1], depth), end))
        if depth > open_runs[-1][1]:
            open_runs.append((first, depth))
    return runs


def sorted_by_table(batch: Batch) -> Int32:
    """Sequences of one row that share their first block with another, in order of their tables."""
    alone = np.flatnonzero((np.diff(batch.row_starts) == 1) & (batch.context_lengths >= SPLIT))
    if len(alone) < 2:
        return alone[:0].astype(np.int32)
    _, which, members = np.unique(
        batch.block_tables[alone, 0], return_inverse=True, return_counts=True
    )
    found = alone[members[which] > 1]
    rows = np.ascontiguousarray(batch.block_tables[found])
    order = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).ravel().argsort()
    return found[order].astype(np.int32)
