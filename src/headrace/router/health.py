"""Health: what calls and probes said about each model at each provider, as a circuit breaker.

closed: calls go. After `THRESHOLD` failures in a row, or where more than half of the last calls
failed, a host (`plan.host_of`) cools: open, no call goes while another host can serve. After that
it is half open: one call goes to try it; its success closes the breaker, its failure cools the
host twice as long as before, up to `LONGEST`. A host that names a time (Retry-After) cools for as
long as it asked, within `LONGEST`. A provider whose models fail one after the other, several of
them and with no success between, cools as a whole. An answer far later than predicted counts as a
failure. An error that is the caller's own fault says nothing. What probes watch is tried by its
probe when it is half open, and by no call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from msgspec import Struct

from headrace.config.schema import LOCAL
from headrace.protocol.errors import HeadraceError, InputError, RateLimited
from headrace.router.plan import host_of

THRESHOLD = 3  # failures in a row before a host cools
PROVIDER_THRESHOLD = 6  # failures in a row, of several models, before a provider cools
SHORTEST = 5.0  # seconds, of the first cooling
LONGEST = 300.0  # seconds, of any cooling
MEMORY = 0.1  # the weight of the newest call in the share of failures
OUTLIER = 0.5  # the share of failures that cools a host
ENOUGH = 10  # calls before that share says anything


Stage = Literal["closed", "open", "half-open"]


class Illness(Struct, frozen=True):
    """Who should not be tried, why, and for how many seconds still for certain."""

    key: str
    stage: Stage
    why: str
    seconds: float


@dataclass(slots=True)
class _State:
    failures: int = 0  # in a row
    coolings: int = 0  # in a row
    until: float = -math.inf  # on the injected clock
    why: str = ""
    trying: bool = False  # half open, and the one call is under way
    calls: int = 0
    share: float = 0.0  # of failures, the newest counting most
    models: set[str] = field(default_factory=set)  # a provider's that failed

    @property
    def closed(self) -> bool:
        return self.until == -math.inf

    def close(self) -> None:
        """All is forgiven."""
        self.failures = self.coolings = self.calls = 0
        self.until, self.why, self.trying, self.share = -math.inf, "", False, 0.0
        self.models.clear()


class Health:
    """Failures and successes in, what should not be tried out. For one event loop: no lock.

    `clock` gives monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._states: dict[str, _State] = {}  # of hosts, and of providers as a whole
        self._heard: dict[str, float | None] = {}  # when calls last told of those that are watched

    def watch(self, keys: Iterable[str]) -> None:
        """Those that are probed, hosts and providers, from now on."""
        self._heard = {key: self._heard.get(key) for key in keys}

    def heard(self, key: str) -> float | None:
        """When a call last told how one that is watched is."""
        return self._heard.get(key)

    def stage(self, key: str) -> Stage:
        """How the breaker of a host or a provider stands."""
        state = self._states.get(key)
        if state is None or state.closed:
            return "closed"
        return "open" if self._clock() < state.until else "half-open"

    def illnesses(self) -> list[Illness]:
        """All whose breaker is not closed."""
        now = self._clock()
        return [
            Illness(key, self.stage(key), state.why, max(state.until - now, 0.0))
            for key, state in self._states.items()
            if not state.closed
        ]

    def probing(self, provider: str) -> None:
        """Take note that a probe asks a provider for something that is not of one model."""
        state = self._states.get(provider)
        if state is not None and not state.closed:
            state.trying = True

    def probed(self, provider: str, error: HeadraceError | None) -> None:
        """Take note of what the provider said to that; None: all is well."""
        if error is None:
            state = self._states.get(provider)
            if state is not None and state.closed:
                state.failures = 0
            elif state is not None and self._clock() >= state.until:
                state.close()
        elif isinstance(error, InputError):
            if provider in self._states:
                self._states[provider].trying = False
        else:
            state = self._states.setdefault(provider, _State())
            self._failure(state, provider, _kind(error), THRESHOLD)

    def begun(self, provider: str, model: str) -> None:
        """Take note that a call to `model` goes out: where the breaker is half open, it is the
        one that tries."""
        if self._states:
            for key in (host_of(provider, model), provider):
                state = self._states.get(key)
                if state is not None and not state.closed and self._clock() >= state.until:
                    state.trying = True

    def failed(self, provider: str, model: str, error: HeadraceError) -> None:
        """Take note that a call failed with `error`."""
        self._hear(provider, model)
        limited = isinstance(error, RateLimited)
        if isinstance(error, InputError) and not limited:
            self.left(provider, model)
            return
        host = host_of(provider, model)
        state = self._states.setdefault(host, _State())
        if error.retry_after is not None:
            asked = min(max(error.retry_after, 0.0), LONGEST)
            said = "it is rate limited" if limited else "it is overloaded"
            state.failures += 1
            self._cool(state, asked, f"'{host}' cools: {said} and asked for {asked:g} s of rest")
            return
        self._failure(state, host, _kind(error), THRESHOLD)
        if not limited and provider != LOCAL:
            whole = self._states.setdefault(provider, _State())
            whole.models.add(model)
            several = PROVIDER_THRESHOLD if len(whole.models) > 1 else math.inf
            self._failure(whole, provider, _kind(error), several)

    def late(self, provider: str, model: str) -> None:
        """Take note that an answer began far later than it should have."""
        self._hear(provider, model)
        host = host_of(provider, model)
        self._failure(self._states.setdefault(host, _State()), host, "it was slow", THRESHOLD)

    def succeeded(self, provider: str, model: str) -> None:
        """Take note that a call went well."""
        self._hear(provider, model)
        if not self._states:
            return
        state = self._states.get(host_of(provider, model))
        if state is not None:
            if state.closed:
                state.failures = 0
                state.calls += 1
                state.share *= 1.0 - MEMORY
            else:
                state.close()
        whole = self._states.get(provider)
        if whole is not None:
            whole.close()

    def left(self, provider: str, model: str) -> None:
        """Take note that a call ended and said nothing, since its caller left, say."""
        for key in (host_of(provider, model), provider):
            state = self._states.get(key)
            if state is not None:
                state.trying = False

    def cooling(self) -> dict[str, str]:
        """Each host, or provider as a whole, that should not be tried now, and why."""
        if not self._states:
            return {}
        now = self._clock()
        ill: dict[str, str] = {}
        for key, state in self._states.items():
            if now < state.until:
                ill[key] = state.why
            elif state.trying:
                ill[key] = f"'{key}' cooled, and one call tries it now"
            elif key in self._heard and not state.closed:
                ill[key] = f"'{key}' cooled, and its probe tries it next"
        return ill

    def _hear(self, provider: str, model: str) -> None:
        if self._heard:
            for key in (host_of(provider, model), provider):
                if key in self._heard:
                    self._heard[key] = self._clock()

    def _failure(self, state: _State, key: str, kind: str, threshold: float) -> None:
        state.failures += 1
        state.calls += 1
        state.share += (1.0 - state.share) * MEMORY
        outlier = state.calls >= ENOUGH and state.share > OUTLIER and threshold < math.inf
        if self._clock() < state.until or not (
            state.failures >= threshold or outlier or state.trying
        ):
            return
        rest = min(SHORTEST * 2.0 ** min(state.coolings, 16), LONGEST)
        state.coolings += 1
        said = (
            f"{state.failures} failures in a row"
            if state.failures >= threshold or not outlier
            else f"{100 * state.share:.0f} % of its calls failed"
        )
        self._cool(state, rest, f"'{key}' cools for {rest:g} s: {said}, the last one: {kind}")

    def _cool(self, state: _State, seconds: float, why: str) -> None:
        state.trying = False
        until = self._clock() + seconds
        if until > state.until:
            state.until, state.why = until, why


def _kind(error: HeadraceError) -> str:
    """What went wrong, in our words: an upstream's may quote one caller's request to another."""
    status = getattr(error, "upstream_status", None)
    return (error.code or error.kind) + (f" (status {status})" if status is not None else "")
