"""Passive health: what the calls themselves said about each provider.

No probes are sent. After `THRESHOLD` failures in a row a provider cools; each failure after a
cooling doubles the next one, up to `LONGEST`. A provider that names a time (Retry-After) cools
for as long as it asked, within `LONGEST`. One success clears everything. An error that is the
caller's own fault says nothing about the provider.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from headrace.protocol.errors import HeadraceError, InputError, RateLimited
from headrace.router.plan import HealthSnapshot

THRESHOLD = 3  # failures in a row before a provider cools
SHORTEST = 5.0  # seconds, of the first cooling
LONGEST = 300.0  # seconds, of any cooling


@dataclass(slots=True)
class _State:
    failures: int = 0  # in a row
    coolings: int = 0  # in a row
    until: float = -math.inf  # on the injected clock
    why: str = ""


class Health:
    """Failures and successes in, snapshots out. For one event loop: it takes no lock.

    `clock` gives monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._states: dict[str, _State] = {}

    def failed(self, provider: str, error: HeadraceError) -> None:
        """Take note that a call to `provider` failed with `error`."""
        limited = isinstance(error, RateLimited)
        if isinstance(error, InputError) and not limited:
            return
        state = self._states.setdefault(provider, _State())
        state.failures += 1
        now = self._clock()
        if error.retry_after is not None:
            asked = min(max(error.retry_after, 0.0), LONGEST)
            said = "it is rate limited" if limited else "it is overloaded"
            self._cool(
                state, now + asked, f"'{provider}' cools: {said} and asked for {asked:g} s of rest"
            )
        elif state.failures >= THRESHOLD and now >= state.until:
            rest = min(SHORTEST * 2.0 ** min(state.coolings, 16), LONGEST)
            state.coolings += 1
            self._cool(
                state,
                now + rest,
                f"'{provider}' cools for {rest:g} s: {state.failures} failures in a row, "
                f"the last one: {_kind(error)}",
            )

    def succeeded(self, provider: str) -> None:
        """Take note that a call to `provider` went well."""
        self._states.pop(provider, None)

    def snapshot(self) -> HealthSnapshot:
        """What a plan may know now."""
        now = self._clock()
        return HealthSnapshot(
            cooling={
                provider: state.why for provider, state in self._states.items() if now < state.until
            }
        )

    @staticmethod
    def _cool(state: _State, until: float, why: str) -> None:
        if until > state.until:
            state.until, state.why = until, why


def _kind(error: HeadraceError) -> str:
    """What went wrong, in our words: an upstream's may quote one caller's request to another."""
    status = getattr(error, "upstream_status", None)
    return (error.code or error.kind) + (f" (status {status})" if status is not None else "")
