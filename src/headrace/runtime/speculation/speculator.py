"""Decides for each step of pure decoding which sequences get which drafts, and how long ones.

One cost model for all sources: the seconds of a step by its rows are measured (`price`), and so is
how often the tokens of each source are right, for each sequence. It costs nothing to measure a
guess that was not computed: the tokens that came in its place say whether it was right. So a
source that is wrong stops to cost anything, and is seen when it is right again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Several
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import log1p
from operator import mul

from ..kvcache import BlockPool
from ..pace import Pace
from ..scheduler import Span
from ..sequence import Sequence
from .draft import Draft, Source
from .lookup import Lookup
from .model import DraftModel
from .price import MOST, StepPrice
from .suffix import Past, SuffixIndex

HOPE = 0.3  # share of a source's tokens expected to be right, before anything is known
NEWEST = 0.15  # weight of the newest token, for a sequence
NEWEST_OF_ALL = 0.01  # and for all sequences together
PROBE = 256  # steps after which a draft model that does not pay is tried again, on two tokens
CALM = 16  # steps without drafts after which the next is expected to have none
FEW = 4  # sequences a step whose drafts are looked for while none pay
FAINT = 0.05  # chance of a token below which it is not considered

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Record:
    """What is known of one sequence."""

    past: Past
    kept: dict[Source, float]  # share of tokens that were right, smoothed
    lookup: Lookup = field(default_factory=Lookup)
    indexed: int = 0  # generated tokens that are in `past`
    guesses: tuple[Draft, ...] = ()  # of the step that runs


class Speculator:
    """The drafts of one engine."""

    def __init__(self, pace: Pace, model: DraftModel | None = None) -> None:
        self.pace = pace
        self.model = model
        self.drafting = 0.0  # seconds that the model took for the step that runs
        self.price = StepPrice()
        self.outputs = SuffixIndex()
        self.records: dict[str, Record] = {}  # by sequence id
        self.kept: dict[Source, float] = {"lookup": HOPE, "suffix": HOPE, "model": HOPE}
        self.drafted = self.accepted = 0
        self.declined = 0  # steps since drafts were worth it

    def extended(self, spans: list[Span], rows: int, pool: BlockPool) -> list[Span]:
        """Spans of pure decoding with the drafts that pay, in `rows` rows at most; or as they are.

        Blocks for them are taken, as far as there are any.
        """
        drafts = self.drafts([span.sequence for span in spans], rows - len(spans))
        if not drafts:
            return spans
        return [
            replace(span, drafts=draft)
            if (draft := drafts.get(span.sequence))
            and pool.grow(span.table, len(span.sequence.tokens) + len(draft))
            else span
            for span in spans
        ]

    @property
    def calm(self) -> bool:
        """Whether it was long ago that drafts paid: the next step need not wait to be asked."""
        return self.model is None and self.declined >= CALM

    def drafts(self, decoding: Several[Sequence], room: int) -> dict[Sequence, tuple[int, ...]]:
        """Drafts that pay, at most `room` tokens of them.

        Where none paid for long, they are not even looked for in every step of many sequences.
        """
        if self.calm and self.price.steps % (1 + len(decoding) // FEW):
            return {}
        best: list[tuple[Sequence, Draft]] = []
        ranked: list[tuple[float, int]] = []  # what a token is worth, whose
        for sequence in decoding:
            record = self.record(sequence)
            record.guesses = self.guesses(sequence, record)
        self.ask_model(decoding)
        for sequence in decoding:
            record = self.records[sequence.id]
            if not record.guesses:
                continue
            chances = [self.chances(record, draft) for draft in record.guesses]
            likely = max(range(len(chances)), key=lambda one: sum(chances[one]))
            ranked += [(gain, len(best)) for gain in gains(chances[likely])]
            best.append((sequence, record.guesses[likely]))
        ranked.sort(reverse=True)
        row_price = self.pace.per_prefill_token or 0.0
        worth = self.price.worth(
            len(decoding), [gain for gain, _ in ranked[: max(room, 0)]], row_price
        )
        self.declined = 0 if worth else self.declined + 1
        lengths = [0] * len(best)
        for _, index in ranked[:worth]:
            lengths[index] += 1
        return {
            sequence: draft.tokens[:length]
            for (sequence, draft), length in zip(best, lengths, strict=True)
            if length
        }

    def ask_model(self, decoding: Several[Sequence]) -> None:
        """Add the draft model's guesses, where their making pays too."""
        self.drafting = 0.0
        if self.model is None:
            return
        kept = sum(self.records[one.id].kept["model"] for one in decoding) / len(decoding)
        row_price = self.pace.per_prefill_token or 0.0
        length = self.price.length(len(decoding), kept, self.model.seconds, row_price)
        if not length and self.price.steps % PROBE == 0:
            length = 2
        asked = [one for one in decoding if self.likely(self.records[one.id]) < kept * length / 2]
        if not asked or not length:
            return
        began = self.model.clock()
        try:
            found = self.model.drafts(asked, length)
        except Exception:
            log.exception("the draft model failed; going on without it")
            self.model = None
            return
        self.drafting = self.model.clock() - began
        for id, draft in found.items():
            self.records[id].guesses += (draft,)

    def likely(self, record: Record) -> float:
        """Tokens expected to be kept of the best guess."""
        return max((sum(self.chances(record, draft)) for draft in record.guesses), default=0.0)

    def record(self, sequence: Sequence) -> Record:
        """What is known of a sequence, its newest tokens included."""
        record = self.records.get(sequence.id)
        if record is None:
            record = Record(self.outputs.begin(sequence.salt), dict(self.kept))
            self.records[sequence.id] = record
        fresh = sequence.tokens[sequence.prompt_tokens + record.indexed :]
        self.outputs.extend(record.past, fresh)
        record.indexed += len(fresh)
        return record

    def guesses(self, sequence: Sequence, record: Record) -> tuple[Draft, ...]:
        """All that may come next, each source's guess, as far as the request allows it."""
        tokens = sequence.tokens
        most = min(MOST, sequence.limit - len(tokens) - 1)
        found = (
            record.lookup.guess(tokens, most),
            self.outputs.guess(sequence.salt, tokens, most),
        )
        drafts = tuple(draft for draft in found if draft is not None)
        if sequence.matcher is None:
            return drafts
        allowed = [(draft, sequence.matcher.allows(draft.tokens)) for draft in drafts]
        return tuple(
            Draft(draft.source, draft.tokens[:length], draft.shares[:length])
            for draft, length in allowed
            if length
        )

    def chances(self, record: Record, draft: Draft) -> list[float]:
        """For each token of a draft, that it and all before it are kept."""
        kept = record.kept[draft.source]
        return list(accumulate((min(share, kept) for share in draft.shares), mul))

    def measured(self, sequences: int, rows: int, tokens: int, seconds: float) -> None:
        """Note what a step of pure decoding took, and how many tokens it gave."""
        self.price.measured(rows, seconds - self.drafting)
        self.price.settle(sequences, rows, tokens, seconds)
        if rows == sequences:
            self.price.account -= self.drafting  # the model guessed in vain, or to be tried
        self.drafting = 0.0

    def judged(self, sequence: Sequence, drafted: int, came: Several[int]) -> None:
        """Note the tokens that came, `drafted` of which had been computed ahead."""
        if drafted:
            self.drafted += drafted
            self.accepted += len(came) - 1
        record = self.records.get(sequence.id)
        if record is None:
            return
        for draft in record.guesses:
            for guess, token in zip(draft.tokens, came, strict=False):
                right = guess == token
                for kept, weight in ((record.kept, NEWEST), (self.kept, NEWEST_OF_ALL)):
                    kept[draft.source] += weight * (right - kept[draft.source])
                if not right:
                    break
        record.guesses = ()

    def close(self) -> None:
        """Release the draft model."""
        if self.model is not None:
            self.model.close()

    def forget(self, sequence: Sequence) -> None:
        """A sequence ended: its output stays known, to its tenant."""
        if self.model is not None:
            self.model.forget(sequence)
        if sequence.id in self.records:
            self.record(sequence)
            del self.records[sequence.id]


def gains(chances: Several[float]) -> list[float]:
    """By how much each token of a draft is expected to raise the logarithm of the speed.

    `chances`: that each is kept, descending; and so are the gains.
    """
    found, tokens = [], 1.0
    for chance in chances:
        if chance < FAINT:
            break
        found.append(log1p(chance / tokens))
        tokens += chance
    return found
