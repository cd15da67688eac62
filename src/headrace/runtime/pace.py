"""How fast this engine is on this machine, measured from its own steps."""

from __future__ import annotations

from dataclasses import dataclass

NEWEST = 0.1  # weight of the newest measurement
DEARER = 0.4  # the same, of one that is dearer than those before, where a bound is to be kept
ENOUGH = 16  # prefill tokens of a step from which their price can be told
LEAST_CHUNK = 16  # tokens; a prompt always moves on


@dataclass(slots=True)
class Pace:
    """Smoothed times in seconds; None until there was a step that tells."""

    decode: float | None = None  # of a step that only decodes
    per_prefill_token: float | None = None  # on top of that
    dear_token: float | None = None  # the same, by which chunks are cut: quick to rise
    turn: float | None = None  # from one end of a sequence to the next, while others wait
    ended: float | None = None  # the last that one ended while others waited; engine's clock

    def measured(self, decode_rows: int, prefill_tokens: int, seconds: float) -> None:
        """Note what a step took."""
        if not prefill_tokens:
            self.decode = smooth(self.decode, seconds)
        elif prefill_tokens >= ENOUGH:
            own = seconds - (self.decode or 0.0) if decode_rows else seconds
            each = max(own, 0.0) / prefill_tokens
            self.per_prefill_token = smooth(self.per_prefill_token, each)
            rises = self.dear_token is not None and each > self.dear_token
            self.dear_token = smooth(self.dear_token, each, DEARER if rises else NEWEST)

    def ends(self, now: float, count: int, *, crowded: bool) -> None:
        """Note that `count` sequences end; `crowded`, that others wait for the room they leave."""
        if crowded and self.ended is not None:
            self.turn = smooth(self.turn, (now - self.ended) / count)
        self.ended = now if crowded else None

    def prefill_seconds(self, tokens: int) -> float:
        """What computing so many prompt tokens takes; a millisecond at least."""
        return max(tokens * (self.per_prefill_token or 0.0), 1e-3)

    def chunk(self, step: float, most: int) -> int:
        """Prompt tokens that fit a decode step that may take `step` seconds, at most `most`."""
        price = self.dear_token or self.per_prefill_token
        if not price:
            return most
        room = step - (self.decode or 0.0)
        return min(most, max(LEAST_CHUNK, int(room / price)))


def smooth(before: float | None, now: float, newest: float = NEWEST) -> float:
    """An exponentially weighted mean."""
    return now if before is None else before + newest * (now - before)
