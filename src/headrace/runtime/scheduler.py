"""Continuous batching: which tokens of which sequences run in this step.

Iteration-level scheduling (Orca, OSDI 2022) with prefill in chunks (Sarathi, arXiv 2308.16369):
one budget of tokens a step; sequences that decode take theirs first, prefill takes what is left,
and no more than keeps the step short enough for them.

Who prefills first: the higher priority; then who would otherwise miss its TTFT target; then the
highest response ratio, (waited + work) / work (Brinch Hansen 1971): short prompts pass long ones,
and long ones do not starve, since their ratio grows as they wait.
"""

from __future__ import annotations

from dataclasses import dataclass

from .kvcache import BlockPool, BlockTable
from .options import Limits
from .pace import Pace
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class Span:
    """The next `count` tokens of a sequence, from position `begin`.

    `drafts` are guesses at the tokens after it, computed in the same step.
    """

    sequence: Sequence
    begin: int
    count: int
    samples: bool  # it reaches the sequence's end, where a token is sampled
    scored: range  # positions whose next token's log-probability is wanted: the prompt's
    table: BlockTable  # the sequence's, as long as it keeps its blocks
    drafts: tuple[int, ...] = ()

    @classmethod
    def of(cls, sequence: Sequence, count: int) -> Span:
        """The next `count` tokens of a sequence that are not computed yet."""
        begin, scored = sequence.computed, range(0)
        if sequence.sampling.prompt_logprobs is not None:
            known = len(sequence.prompt_logprobs)  # more than `computed` after a preemption
            scored = range(max(begin, known), min(begin + count, sequence.prompt_tokens - 1))
        return cls(sequence, begin, count, count == sequence.pending, scored, sequence.table)

    @property
    def end(self) -> int:
        """The position after its tokens."""
        return self.begin + self.count

    @property
    def rows(self) -> int:
        """Rows of the step that the span takes."""
        return self.count + len(self.drafts)

    @property
    def chosen(self) -> int:
        """Tokens that are sampled: the one after it, and one after each draft."""
        return self.samples + len(self.drafts)

    @property
    def decodes(self) -> bool:
        """Whether the span is the newest generated token of its sequence, and no more."""
        return self.count == 1 and self.samples and self.begin >= self.sequence.prompt_tokens

    @property
    def holds(self) -> bool:
        """Whether its sequence still has the blocks that it had."""
        return not self.sequence.over and self.table is self.sequence.table


class Scheduler:
    """Holds who waits and who runs, in order of arrival there."""

    def __init__(self, pool: BlockPool, limits: Limits, pace: Pace) -> None:
        self.pool = pool
        self.limits = limits
        self.pace = pace
        self.waiting: dict[Sequence, None] = {}
        self.running: dict[Sequence, None] = {}
        self.preempted = 0
        self.changes = 0  # of who waits and who runs, but for what `schedule` does by itself

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; its prompt fits the pool."""
        self.waiting[sequence] = None
        self.changes += 1

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended, wherever it is, and free its blocks."""
        self.running.pop(sequence, None)
        self.waiting.pop(sequence, None)
        self.pool.release(sequence.table)
        self.changes += 1

    def queued(self) -> list[int]:
        """Prompt tokens that are still to be computed: at place i those of sequences that have
        left a count of i bits, since short ones go first; where they do not, all at place 0."""
        found = [0]
        for left in (one.pending for who in (self.running, self.waiting) for one in who):
            bits = left.bit_length() if self.limits.by_ratio else 0
            if left > 1:
                found.extend([0] * (bits + 1 - len(found)))
                found[bits] += left
        return found

    def late(self, now: float) -> list[Sequence]:
        """Those that wait and can no longer have their first token when they need it."""
        return [sequence for sequence in self.waiting if self.slack(sequence, now) < 0]

    def slack(self, sequence: Sequence, now: float) -> float:
        """Seconds until a sequence has to begin its prefill to meet its TTFT target."""
        if sequence.deadline is None or sequence.first_token is not None:
            return float("inf")
        return sequence.deadline - now - self.pace.prefill_seconds(sequence.pending)

    def schedule(self, now: float) -> list[Span]:
        """Spans of the next step, decodes first; blocks for them are taken.

        Who needs blocks that are on their way from host memory is passed over, as long as there is
        something else to do; the copies are begun with the step.
        """
        host = self.pool.host
        if host is None:
            return self.spans(now)
        host.settle()
        return self.spans(now, patient=True) or self.spans(now)

    def spans(self, now: float, *, patient: bool = False) -> list[Span]:
        """Spans of the next step; where `patient`, of no sequence whose KV is still coming."""
        spans: dict[Sequence, Span] = {}
        ready = [one for one in self.running if not (patient and self.pool.arriving(one.table))]
        for sequence in [one for one in ready if one.pending == 1 and one.goes_on]:
            # one that gave its blocks away while this loop ran is waiting again
            if sequence in self.running and self.make_room(sequence, 1, spans):
                spans[sequence] = Span.of(sequence, 1)
        budget = self.prefill_budget(spans)
        prefilling = [one for one in ready if one.pending > 1 and one in self.running]
        admitting = len(self.running) < self.limits.sequences
        candidates = [*prefilling, *(self.waiting if admitting and budget else ())]
        candidates.sort(key=lambda one: self.urgency(one, now), reverse=True)
        for sequence in candidates:
            if not budget:
                break
            if sequence in self.running:
                if not self.make_room(sequence, budget, spans):
                    continue
            elif not (admitting and self.admit(sequence)):
                admitting = False  # whoever comes after must not take what this one waits for
                continue
            elif patient and self.pool.arriving(sequence.table):
                continue
            spans[sequence] = Span.of(sequence, min(sequence.pending, budget))
            budget -= spans[sequence].count
        return list(spans.values())

    def prefill_budget(self, decoding: dict[Sequence, Span]) -> int:
        """Prompt tokens that this step may compute beside the sequences that decode."""
        budget = self.limits.batch_tokens - len(decoding)
        if not decoding:
            return budget
        targets = [one.step_target for one in decoding if one.step_target is not None]
        return self.pace.chunk(min([self.limits.step, *targets]), budget)

    def urgency(self, sequence: Sequence, now: float) -> tuple[int, bool, float]:
        """The order of prefill, most urgent largest."""
        if not self.limits.by_ratio:
            return 0, False, -sequence.arrived
        work = self.pace.prefill_seconds(sequence.pending)
        at_risk = self.slack(sequence, now) < work
        return sequence.priority, at_risk, (now - sequence.arrived + work) / work

    def admit(self, sequence: Sequence) -> bool:
        """Take blocks for all of a sequence's tokens, those shared with others first, and run it.

        False, and nothing taken, where they do not fit with a block to spare.
        """
        if len(self.running) >= self.limits.sequences:
            return False
        table, tokens = sequence.table, sequence.tokens
        scored = sequence.sampling.prompt_logprobs is not None  # and so must be computed
        shared = 0 if scored else self.pool.share(table, tokens, sequence.salt)
        needed = self.pool.blocks_for(sequence.length) - len(table.blocks)
        spare = 1 if self.running else 0
        if needed + spare > self.pool.available:
            self.pool.release(table)
            return False
        if scored:
            self.pool.grow(table, sequence.length)
        else:
            shared = self.pool.extend(table, tokens, sequence.salt, sequence.length)
        sequence.computed = shared
        if sequence.started is None:
            sequence.cached = shared
        del self.waiting[sequence]
        self.running[sequence] = None
        return True

    def make_room(self, sequence: Sequence, budget: int, spans: dict[Sequence, Span]) -> bool:
        """Take blocks for a sequence's next span, from those of less right to them if need be."""
        tokens = sequence.computed + min(sequence.pending, budget)
        while not self.pool.grow(sequence.table, tokens):
            least = min(self.running, key=lambda one: (one.priority, -one.arrived))
            self.preempt(least)
            spans.pop(least, None)
            if least is sequence:
                return False
        return True

    def lose_arrivals(self) -> None:
        """What was to come from host memory will not: whoever counted on it is computed again."""
        lost = set(self.pool.lose_arrivals())
        for sequence in [one for one in self.running if not lost.isdisjoint(one.table.blocks)]:
            self.preempt(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Free a sequence's blocks; it waits again and will be computed again.

        A step that runs still writes to them: whoever gets them next writes after it.
        """
        del self.running[sequence]
        self.pool.release(sequence.table)
        sequence.table = BlockTable(chain=sequence.table.chain)
        sequence.computed = 0
        self.waiting[sequence] = None
        self.preempted += 1
