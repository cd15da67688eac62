"""From spans to the arrays of a step: everything that depends on lengths, once, on the host."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .backends.base import Batch, Int32, SamplingRows
from .grammar import masks
from .penalties import gather
from .sampling import uniform
from .scheduler import Span
from .sequence import Sequence

if TYPE_CHECKING:
    from .guidance import Matcher  # an optional part

NOT_SCORED = -1
COMING = 0  # stands for a token that is not known yet
NOTHING: Mapping[Sequence, int] = {}


@dataclass(frozen=True, slots=True)
class Probe:
    """A row whose logits are wanted: to choose a token, or for the log-probability of `target`."""

    sequence: Sequence
    position: int  # of the token that is wanted
    target: int = NOT_SCORED
    drafted: tuple[int, ...] = ()  # before the one to choose

    @property
    def open(self) -> bool:
        """Whether a token is to be chosen, and anybody waits for it."""
        return self.target == NOT_SCORED and not self.sequence.over


def plan_batch(spans: Several[Span], block_size: int) -> Batch:
    """Arrays for the spans of one step, in order, all of whose tokens are known.

    Their sequences hold the blocks they need.
    """
    return plan_rows(spans, block_size, sampling=sampling_rows(probes(spans)))


def plan_rows(
    spans: Several[Span],
    block_size: int,
    before: Mapping[Sequence, int] = NOTHING,
    sampling: SamplingRows | None = None,
) -> Batch:
    """As `plan_batch`, where how tokens are chosen may be seen later.

    `before`: of sequences with a token that is coming, its sample in the step that runs.
    """
    begins = np.array([span.begin for span in spans], np.int32)
    counts = np.array([span.rows for span in spans], np.int32)
    row_starts = np.zeros(len(spans) + 1, np.int32)
    np.cumsum(counts, out=row_starts[1:])
    tokens: list[int] = []
    carried: list[tuple[int, int]] = []  # row, sample of the step before
    for span in spans:
        tokens += span.sequence.tokens[span.begin : span.end]
        if span.end > len(span.sequence.tokens):
            carried.append((len(tokens), before[span.sequence]))
            tokens.append(COMING)
        tokens += span.drafts
    owners = np.repeat(np.arange(len(spans), dtype=np.int32), counts)
    positions = np.arange(len(tokens), dtype=np.int32) + (begins - row_starts[:-1])[owners]
    tables = block_tables(spans)
    places = tables[owners, positions // block_size] * block_size
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=positions,
        slots=places + positions % block_size,
        row_starts=row_starts,
        context_lengths=begins + counts,
        block_tables=tables,
        sampled_rows=sampled_rows(spans),
        sampling=sampling,
        given=np.array([span.sequence.prompt_tokens for span in spans], np.int32),
        adapters=adapters(spans),
        carried=scattered(carried, len(tokens)) if carried else None,
    )


def block_tables(spans: Several[Span]) -> Int32:
    """The blocks of each sequence, then -1; [sequences, widest]."""
    blocks = [span.table.blocks for span in spans]
    widest = max(map(len, blocks))
    return np.array([[*row, *(-1,) * (widest - len(row))] for row in blocks], np.int32)


def scattered(values: Several[tuple[int, int]], size: int) -> Int32:
    """Values at their places, -1 elsewhere; int32 [size]."""
    found = np.full(size, -1, np.int32)
    for place, value in values:
        found[place] = value
    return found


def by_adapter(spans: list[Span]) -> list[Span]:
    """The spans with those of an adapter side by side: a backend takes their rows together."""
    if not any(span.sequence.adapter for span in spans):
        return spans
    return sorted(spans, key=adapter)


def adapter(span: Span) -> int:
    """The number of a span's adapter, -1 where it has none."""
    used = span.sequence.adapter
    return -1 if used is None else used.number


def adapters(spans: Several[Span]) -> Int32 | None:
    """The number of each sequence's adapter, where any has one."""
    numbers = np.array([adapter(span) for span in spans], np.int32)
    return numbers if (numbers >= 0).any() else None


def sampled_rows(spans: Several[Span]) -> Int32:
    """The rows whose logits are wanted, those of `probes`."""
    found: list[int] = []
    first = 0
    for span in spans:
        found.extend(first + position - span.begin for position in span.scored)
        last = first + span.count - 1
        found.extend(range(last, last + span.chosen))
        first += span.rows
    return np.array(found, np.int32)


def probes(spans: Several[Span]) -> list[Probe]:
    """What is wanted of a step's spans, in the order of its rows."""
    found: list[Probe] = []
    for span in spans:
        sequence = span.sequence
        for position in span.scored:
            found.append(Probe(sequence, position + 1, sequence.tokens[position + 1]))
        for ahead in range(span.chosen):
            found.append(Probe(sequence, span.end + ahead, drafted=span.drafts[:ahead]))
    return found


def sampling_rows(wanted: Several[Probe]) -> SamplingRows:
    """How the token of each wanted row is chosen."""
    asked = [probe.sequence.sampling for probe in wanted]
    return SamplingRows(
        temperature=np.array([one.temperature for one in asked], np.float32),
        top_k=np.array([one.top_k for one in asked], np.int32),
        top_p=np.array([one.top_p for one in asked], np.float32),
        min_p=np.array([one.min_p for one in asked], np.float32),
        uniform=np.array(
            [
                uniform(probe.sequence.seed, probe.position - probe.sequence.prompt_tokens)
                for probe in wanted
            ],
            np.float32,
        ),
        target=np.array([probe.target for probe in wanted], np.int32),
        ranked=max((ranked(probe) for probe in wanted), default=0),
        edits=gather([edits(probe) for probe in wanted]),
        masks=masks([matcher(probe) for probe in wanted]),
    )


def ranked(probe: Probe) -> int:
    """How many of the most likely tokens the probe's request wants to see."""
    asked = probe.sequence.sampling
    return (asked.logprobs if probe.target == NOT_SCORED else asked.prompt_logprobs) or 0


def matcher(probe: Probe) -> Matcher | None:
    """What says which tokens the probe may choose, where its request has a grammar."""
    at = probe.sequence.matcher if probe.open else None
    return at if at is None or not probe.drafted else at.after(probe.drafted)


def edits(probe: Probe) -> tuple[list[int], list[float], list[float]] | None:
    """The edits of the probe's logits, where its request asks for any."""
    sequence = probe.sequence
    counts = sequence.counts
    if counts is None or not probe.open:
        return None
    early = probe.position - sequence.prompt_tokens < sequence.sampling.min_tokens
    if probe.drafted:
        counts = counts.after(probe.drafted)
    return counts.entries(sequence.end_tokens if early else ())
