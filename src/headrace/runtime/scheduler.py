"""Continuous batching: which tokens of which sequences run in this step.

Iteration-level scheduling (Orca, OSDI 2022) with prefill in chunks (Sarathi, arXiv 2308.16369):
one budget of tokens a step; sequences that decode take theirs first, prefill takes what is left.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .kvcache import BlockPool
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the scheduler. `batch_tokens` is at least `sequences`: no decode ever waits."""

    batch_tokens: int = 512
    sequences: int = 64
    waiting: int = 1024

    def __post_init__(self) -> None:
        if self.batch_tokens < self.sequences:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) must be at least sequences ({self.sequences})"
            )


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Span:
    """The next `count` tokens of a sequence; at its end a token is sampled.

    `drafts` are guesses at the tokens after it, computed in the same step.
    """

    sequence: Sequence
    count: int
    drafts: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the step that the span takes."""
        return self.count + len(self.drafts)

    @property
    def samples(self) -> bool:
        """Whether the span reaches the sequence's end."""
        return self.count == self.sequence.pending

    @property
    def decodes(self) -> bool:
        """Whether the span is the newest generated token of its sequence, and no more."""
        return self.count == self.sequence.pending == 1 and self.sequence.generated > 0

    @property
    def scored(self) -> range:
        """Positions in the span whose next token's log-probability is wanted: the prompt's."""
        sequence = self.sequence
        if sequence.sampling.prompt_logprobs is None:
            return range(0)
        known = len(sequence.prompt_logprobs)  # more than `computed` after a preemption
        end = min(sequence.computed + self.count, sequence.prompt_tokens - 1)
        return range(max(sequence.computed, known), end)


class Scheduler:
    """First come, first served; when KV runs out the youngest gives way and is computed again."""

    def __init__(self, pool: BlockPool, limits: Limits) -> None:
        self.pool = pool
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival
        self.preempted = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its prompt fits the pool."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended, wherever it is, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.pool.release(sequence.table)

    def schedule(self) -> list[Span]:
        """Spans of the next step, decodes first; blocks for them are taken."""
        spans: dict[Sequence, Span] = {}
        budget = self.limits.batch_tokens
        for sequence in sorted(self.running, key=lambda running: running.pending > 1):
            # a sequence that gave its blocks away while this loop ran is waiting again
            if budget and sequence in self.running and self.make_room(sequence, budget, spans):
                spans[sequence] = Span(sequence, min(sequence.pending, budget))
                budget -= spans[sequence].count
        while budget and self.waiting and self.admit(self.waiting[0]):
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            spans[sequence] = Span(sequence, min(sequence.pending, budget))
            budget -= spans[sequence].count
        return list(spans.values())

    def admit(self, sequence: Sequence) -> bool:
        """Take blocks for all of a sequence's tokens, those shared with others first.

        False, and nothing taken, where they do not fit with a block to spare.
        """
        if len(self.running) >= self.limits.sequences:
            return False
        table, tokens = sequence.table, sequence.tokens
        scored = sequence.sampling.prompt_logprobs is not None  # and so must be computed
        shared = 0 if scored else self.pool.share(table, tokens, sequence.salt)
        needed = self.pool.blocks_for(len(tokens)) - len(table.blocks)
        spare = 1 if self.running else 0
        if needed + spare > self.pool.available:
            self.pool.release(table)
            return False
        self.pool.grow(table, len(tokens))
        sequence.computed = shared
        if sequence.started is None:
            sequence.cached = shared
        return True

    def make_room(self, sequence: Sequence, budget: int, spans: dict[Sequence, Span]) -> bool:
        """Take blocks for the sequence's next span, from younger sequences if need be."""
        tokens = sequence.computed + min(sequence.pending, budget)
        while not self.pool.grow(sequence.table, tokens):
            youngest = self.running[-1]
            self.preempt(youngest)
            spans.pop(youngest, None)
            if youngest is sequence:
                return False
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Free a sequence's blocks; it is first in the queue and will be computed again."""
        self.running.remove(sequence)
        self.pool.release(sequence.table)
        sequence.computed = 0
        self.waiting.appendleft(sequence)
        self.preempted += 1
