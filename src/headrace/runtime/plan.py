"""From spans to the arrays of a step: everything that depends on lengths, once, on the host."""

from __future__ import annotations

from collections.abc import Sequence as Several

import numpy as np

from .backends.base import Batch
from .sampling import sampling_rows
from .scheduler import Span


def plan_batch(spans: Several[Span], block_size: int) -> Batch:
    """Arrays for the spans of one step, in order. Their sequences hold the blocks they need."""
    counts = np.array([span.count for span in spans], np.int32)
    row_starts = np.zeros(len(spans) + 1, np.int32)
    np.cumsum(counts, out=row_starts[1:])
    rows = int(row_starts[-1])
    tokens, positions, slots = (np.empty(rows, np.int32) for _ in range(3))
    blocks = [span.sequence.table.blocks for span in spans]
    tables = np.full((len(spans), max(map(len, blocks))), -1, np.int32)
    for index, span in enumerate(spans):
        sequence, (first, last) = span.sequence, row_starts[index : index + 2]
        begin, end = sequence.computed, sequence.computed + span.count
        tables[index, : len(blocks[index])] = blocks[index]
        places = np.arange(begin, end, dtype=np.int32)
        tokens[first:last] = sequence.tokens[begin:end]
        positions[first:last] = places
        slots[first:last] = tables[index, places // block_size] * block_size + places % block_size
    sampling = [span.sequence for span in spans if span.samples]
    reach = np.array([span.samples for span in spans], np.bool_)
    return Batch(
        tokens=tokens,
        positions=positions,
        slots=slots,
        row_starts=row_starts,
        context_lengths=np.array([span.sequence.computed for span in spans], np.int32) + counts,
        block_tables=tables,
        sampled_rows=row_starts[1:][reach] - 1,
        sampling=sampling_rows([(one.sampling, one.seed, one.generated) for one in sampling]),
    )
