"""Drafts for decoding sequences, and whether they pay.

A draft is a guess at the next tokens; the step computes it beside the token that is due, and keeps
as much of it as the sampler chooses by itself. The sampler's randomness is a function of seed and
position (`sampling.uniform`), so a sequence gets the very tokens it would have got without drafts:
not only the same distribution (Leviathan et al. 2022, arXiv 2211.17192), the same text.

Guesses come from the sequence's own past ("prompt lookup"): what followed the last time that its
last few tokens stood together. They are made only while they pay: the time of a step by its rows
is measured, and so is how much of a sequence's drafts is kept.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass, field

from .sequence import Sequence

KEY = 3  # tokens that have to stand together for a guess
MOST = 6  # tokens of a draft
FORGET = 0.1  # weight of the newest measurement
HOPE = 0.7  # share of a draft expected to be kept, before anything is known
PAUSE = 48  # tokens a sequence waits after its drafts have not paid


@dataclass(slots=True)
class Past:
    """Where each run of `KEY` tokens of a sequence was last followed by something."""

    next_place: dict[tuple[int, ...], int] = field(default_factory=dict)
    indexed: int = 0  # tokens that are in `next_place`
    kept: float = HOPE  # share of drafted tokens that were kept, smoothed
    resume: int = 0  # length from which drafts may be made again

    def guess(self, tokens: Several[int], most: int) -> tuple[int, ...]:
        """What followed last time, up to `most` tokens; none where there was no such time."""
        for place in range(max(self.indexed, KEY), len(tokens)):
            self.next_place[tuple(tokens[place - KEY : place])] = place
        self.indexed = len(tokens)
        last = self.next_place.get(tuple(tokens[-KEY:]))
        return () if last is None else tuple(tokens[last : last + most])


class Speculator:
    """Decides for each step of pure decoding which sequences get drafts."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}  # of a decode step by its rows, smoothed
        self.pasts: dict[str, Past] = {}  # by sequence id
        self.drafted = self.accepted = 0

    def drafts(self, decoding: Several[Sequence], room: int) -> dict[Sequence, tuple[int, ...]]:
        """Drafts that pay, at most `room` tokens of them."""
        found: dict[Sequence, tuple[int, ...]] = {}
        hoped = 0.0
        for sequence in decoding:
            past = self.pasts.get(sequence.id)
            if past is None:
                past = self.pasts[sequence.id] = Past()
            # An edited or masked row depends on the tokens before it, which a draft only guesses.
            if sequence.counts is not None or sequence.matcher is not None:
                continue
            if len(sequence.tokens) < past.resume:
                continue
            left = sequence.limit - len(sequence.tokens) - 1
            draft = past.guess(sequence.tokens, min(MOST, room, left))
            if draft:
                found[sequence] = draft
                room -= len(draft)
                hoped += expected(past.kept, len(draft))
        rows = len(decoding)
        return found if self.pays(rows, rows + sum(map(len, found.values())), hoped) else {}

    def pays(self, rows: int, more: int, hoped: float) -> bool:
        """Whether `hoped` further tokens are worth a step of `more` rows instead of `rows`."""
        plain, drafted = self.seconds.get(rows), self.nearest(more)
        if plain is None:
            return False  # first see what a plain step costs
        if drafted is None:
            return True  # then what a larger one does
        return (rows + hoped) / drafted > rows / plain

    def nearest(self, rows: int) -> float | None:
        """Seconds of a step of so many rows; of the next larger one that was measured."""
        return next(
            (self.seconds[more] for more in range(rows, rows + MOST) if more in self.seconds), None
        )

    def measured(self, rows: int, seconds: float) -> None:
        """Note what a step of pure decoding took."""
        before = self.seconds.get(rows, seconds)
        self.seconds[rows] = before + FORGET * (seconds - before)

    def judged(self, sequence: Sequence, drafted: int, kept: int) -> None:
        """Note how much of a draft was kept."""
        self.drafted += drafted
        self.accepted += kept
        past = self.pasts[sequence.id]
        past.kept += 0.3 * (kept / drafted - past.kept)
        if past.kept < 0.15:
            past.resume = len(sequence.tokens) + PAUSE
            past.kept = HOPE / 2

    def forget(self, id: str) -> None:
        """Drop what is known of a sequence that ended."""
        self.pasts.pop(id, None)


def expected(share: float, length: int) -> float:
    """Tokens kept of a draft, where each is kept with chance `share` if those before it were."""
    return sum(share**place for place in range(1, length + 1))
