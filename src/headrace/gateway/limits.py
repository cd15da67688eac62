"""How much may run: requests and tokens a minute, and calls at once, for one scope.

A scope is a key, a model, or the whole server. A minute slides: in no 60 seconds is more let in
than the limit says. `clock` gives monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from headrace.config.schema import Limits
from headrace.gateway.board import LIVE, MINUTE, Board, Row
from headrace.protocol.errors import RateLimited

SOON = 1.0  # seconds after which a place among the running calls may be free
MOST = 2**40  # tokens of one call that are counted
NEWEST, USED, FIRST = range(3)  # of a window's cells


class Window:
    """Amounts taken in the last minute, by the second in which they were taken. `cells` hold the
    newest second, the sum, and the amount of each second that counts."""

    def __init__(self, limit: int, cells: memoryview[int]) -> None:
        self.limit = limit
        self._cells = cells

    def used(self, now: float) -> int:
        """What was taken within the last minute."""
        self._advance(int(now))
        return self._cells[USED]

    def take(self, amount: int, now: float) -> None:
        """Count `amount` as taken now."""
        second = int(now)
        self._advance(second)
        self._add(second, amount)

    def correct(self, second: int, by: int) -> None:
        """Change what was taken in `second` (negative: less was needed)."""
        if second > self._cells[NEWEST] - LIVE:
            self._add(second, min(by, MOST))

    def wait(self, amount: int, now: float) -> float:
        """Seconds until `amount` can be taken; 0 if now, a minute if never."""
        over = self.used(now) + amount - self.limit
        if over <= 0:
            return 0.0
        newest = self._cells[NEWEST]
        for second in range(newest - MINUTE, newest + 1):
            over -= self._cells[FIRST + second % LIVE]
            if over <= 0:
                return second + LIVE - now
        return float(MINUTE)

    def reset(self, now: float) -> float:
        """Seconds until nothing that was taken counts any more."""
        self._advance(int(now))
        newest = self._cells[NEWEST]
        for second in range(newest, newest - LIVE, -1):
            if self._cells[FIRST + second % LIVE] > 0:
                return second + LIVE - now
        return 0.0

    def _add(self, second: int, amount: int) -> None:
        self._cells[FIRST + second % LIVE] += amount
        self._cells[USED] += amount

    def _advance(self, second: int) -> None:
        """Let `second` be the newest. The sum is made anew: a process that died may have left it
        wrong."""
        cells = self._cells
        newest = cells[NEWEST]
        if second <= newest:
            return
        for gone in range(max(newest + 1, second - MINUTE), second + 1):
            cells[FIRST + gone % LIVE] = 0
        cells[NEWEST] = second
        cells[USED] = sum(cells[FIRST:])


class Allowance(Struct, frozen=True):
    """What a scope lets in of one kind, for the rate limit headers: seconds until all is free."""

    limit: int
    remaining: int
    reset: float


class Scope:
    """The limits of one key, one model or the server, and what has been taken of them, counted on
    `board`. Raises BoardFull."""

    def __init__(
        self, name: str, limits: Limits, clock: Callable[[], float], board: Board | None = None
    ) -> None:
        self.name = name
        self.limits = limits
        self._clock = clock
        self._concurrent = limits.concurrent
        self.requests: Window | None = None
        self.tokens: Window | None = None
        self._row: Row | None = None  # where nothing is limited
        if limits != Limits():
            self._row = row = (board or Board()).row(f"{name} {limits}")
            self.requests = None if limits.rpm is None else Window(limits.rpm, row.requests)
            self.tokens = None if limits.tpm is None else Window(limits.tpm, row.tokens)

    def enter(self) -> None:
        """Take a place for one more call. Raises RateLimited; then nothing was taken."""
        row = self._row
        if row is None:
            return
        with row:
            if self._concurrent is not None and row.places.taken >= self._concurrent:
                raise self._over(f"{self._concurrent} requests at once", SOON)
            if self.requests is not None:
                now = self._clock()
                seconds = self.requests.wait(1, now)
                if seconds > 0:
                    raise self._over(f"{self.requests.limit} requests per minute", seconds)
                self.requests.take(1, now)
            row.places.take()

    def leave(self) -> None:
        """Give the place back."""
        if self._row is not None:
            self._row.places.leave()

    def take_tokens(self, amount: int) -> int:
        """Take the most tokens that a call may need; the second in which they were taken.

        Raises RateLimited.
        """
        now = self._clock()
        if self._row is not None and self.tokens is not None:
            with self._row:
                seconds = self.tokens.wait(amount, now)
                if seconds > 0:
                    what = f"{self.tokens.limit} tokens per minute ({amount} more may be needed)"
                    raise self._over(what, seconds)
                self.tokens.take(amount, now)
        return int(now)

    def correct_tokens(self, second: int, by: int) -> None:
        """Change what was taken in `second` to what was used."""
        if self._row is not None and self.tokens is not None:
            with self._row:
                self.tokens.correct(second, by)

    def allowances(self) -> dict[str, Allowance]:
        """What is left of `requests` and `tokens`, where they are limited."""
        found: dict[str, Allowance] = {}
        if self._row is None:
            return found
        now = self._clock()
        with self._row:
            for name, window in (("requests", self.requests), ("tokens", self.tokens)):
                if window is not None:
                    left = max(window.limit - window.used(now), 0)
                    found[name] = Allowance(window.limit, left, window.reset(now))
        return found

    def _over(self, what: str, seconds: float) -> RateLimited:
        return RateLimited(f"{self.name} is limited to {what}.", retry_after=seconds)
