"""How long a model takes: learned from its calls, as a line in prompt length and load.

TTFT of a host is `a + b * prompt tokens + c * load`, its ITL `a + c * load`; load is the number of
calls that it serves at once. Our own engine says itself what to expect of its queue and its KV
cache: there TTFT and ITL are so many times what it says. Each line is the least-squares fit over
the calls so far, the older ones counting less and less (`MEMORY`); until calls that differ have
shown them, the slopes are drawn to zero, and that of what an engine says of itself to one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from headrace.router.plan import Speed, host_of

MEMORY = 0.97  # what a call counts for after another one has come
PULL = 0.05  # towards the slope that a fit begins with, in calls
THOUSAND = 1000.0  # tokens, so that all terms are of about one size
LATE_TIMES, LATE_SECONDS = 4.0, 1.0  # an answer is late at this many times and seconds over
KNOWN = 8  # calls before a prediction can call an answer late

# The calls that run or wait in the engine that serves a model, None where it is not known.
Load = Callable[[str, str], float | None]
# What an engine says of itself: what a prompt of so many tokens has to expect; None: nothing.
Outlook = Callable[[str, str, int], Speed | None]


class Line:
    """A weighted least-squares fit of one value, terms given by the caller, the first being 1."""

    def __init__(self, terms: int) -> None:
        self.count = 0
        self._moments = [[0.0] * terms for _ in range(terms)]
        self._sums = [0.0] * terms
        self._weights: list[float] | None = None

    def add(self, terms: Sequence[float], value: float) -> None:
        """Learn that `terms` came with `value`."""
        self.count += 1
        self._weights = None
        for i, term in enumerate(terms):
            self._sums[i] = MEMORY * self._sums[i] + term * value
            row = self._moments[i]
            for j, other in enumerate(terms):
                row[j] = MEMORY * row[j] + term * other

    def at(self, terms: Sequence[float]) -> float:
        """The value to expect at `terms`, at least 0."""
        if self._weights is None:
            self._weights = self._fit()
        return max(sum(w * t for w, t in zip(self._weights, terms, strict=True)), 0.0)

    def _fit(self) -> list[float]:
        """Solve the normal equations. A slope below zero is no cost of length or load but
        chance: the fit is made again without it."""
        free = list(range(len(self._sums)))
        while True:
            rows = [
                [self._moments[i][j] + (PULL if i == j and i else 0.0) for j in free]
                + [self._sums[i]]
                for i in free
            ]
            found = solved(rows)
            below = [k for k, value in enumerate(found) if k and value < 0.0]
            if not below:
                weights = [0.0] * len(self._sums)
                for k, i in enumerate(free):
                    weights[i] = found[k]
                return weights
            free = [i for k, i in enumerate(free) if k not in below]


class Ratio:
    """How many times what was said came: a weighted least-squares fit through zero."""

    def __init__(self) -> None:
        self.count = 0
        self._said = self._came = PULL

    def add(self, terms: Sequence[float], value: float) -> None:
        """Learn that `value` came where the one term was said."""
        self.count += 1
        self._said = MEMORY * self._said + terms[0] * terms[0]
        self._came = MEMORY * self._came + terms[0] * value

    def at(self, terms: Sequence[float]) -> float:
        """The value to expect where the one term is said."""
        return terms[0] * self._came / self._said


def solved(rows: list[list[float]]) -> list[float]:
    """The solution of a small symmetric positive definite system, its right side the last
    column, by elimination; changes `rows`."""
    size = len(rows)
    for i in range(size):
        for k in range(i + 1, size):
            factor = rows[k][i] / rows[i][i]
            for j in range(i, size + 1):
                rows[k][j] -= factor * rows[i][j]
    found = [0.0] * size
    for i in reversed(range(size)):
        known = sum(rows[i][j] * found[j] for j in range(i + 1, size))
        found[i] = (rows[i][size] - known) / rows[i][i]
    return found


@dataclass(frozen=True, slots=True)
class Met:
    """What a call met: the calls that its host served, and what an engine said of itself."""

    prompt_tokens: int
    load: float
    outlook: Speed | None = None

    @property
    def ttft_terms(self) -> tuple[float, ...]:
        """What the TTFT is fitted to."""
        if self.outlook is not None:
            return (self.outlook.ttft,)
        return 1.0, self.prompt_tokens / THOUSAND, self.load

    @property
    def itl_terms(self) -> tuple[float, ...]:
        """What the ITL is fitted to."""
        return (1.0, self.load) if self.outlook is None else (self.outlook.itl,)


@dataclass(slots=True)
class _Fits:
    ttft: Line | Ratio
    itl: Line | Ratio


@dataclass(slots=True)
class _Host:
    seen: _Fits = field(default_factory=lambda: _Fits(Line(3), Line(2)))
    said: _Fits = field(default_factory=lambda: _Fits(Ratio(), Ratio()))
    running: int = 0

    def fits(self, met: Met) -> _Fits:
        """Those that a call is part of."""
        return self.seen if met.outlook is None else self.said


class Speeds:
    """Finished calls in, predictions out. For one event loop: no lock."""

    def __init__(
        self,
        load: Load = lambda provider, model: None,
        outlook: Outlook = lambda provider, model, prompt_tokens: None,
    ) -> None:
        self._load = load
        self._outlook = outlook
        self._hosts: dict[str, _Host] = {}

    def begun(self, provider: str, model: str, prompt_tokens: int) -> Met:
        """A call goes to the host; what it meets. Each needs its `ended`."""
        met = self._meets(provider, model, prompt_tokens)
        self._host(provider, model).running += 1
        return met

    def ended(self, provider: str, model: str) -> None:
        """The call is over, however it ended."""
        self._hosts[host_of(provider, model)].running -= 1

    def load(self, provider: str, model: str) -> float:
        """How many calls the host serves now."""
        host = self._hosts.get(host_of(provider, model))
        ours = 0.0 if host is None else float(host.running)
        theirs = self._load(provider, model)
        return ours if theirs is None else max(ours, theirs)

    def first(self, provider: str, model: str, met: Met, seconds: float) -> bool:
        """Learn the TTFT of one call; whether it came late by what was known before."""
        fit = self._host(provider, model).fits(met).ttft
        late = False
        if fit.count >= KNOWN:
            expected = fit.at(met.ttft_terms)
            late = seconds > LATE_TIMES * expected and seconds > expected + LATE_SECONDS
        fit.add(met.ttft_terms, seconds)
        return late

    def between(self, provider: str, model: str, met: Met, seconds: float) -> None:
        """Learn the mean ITL of one call."""
        self._host(provider, model).fits(met).itl.add(met.itl_terms, seconds)

    def predicted(self, provider: str, model: str, prompt_tokens: int) -> Speed | None:
        """What a call made now has to expect; None where no call has finished yet, and no engine
        says it."""
        met = self._meets(provider, model, prompt_tokens)
        host = self._hosts.get(host_of(provider, model))
        fits = None if host is None else host.fits(met)
        if fits is None or fits.ttft.count == 0:
            return met.outlook
        itl = 0.0 if met.outlook is None else met.outlook.itl
        if fits.itl.count:
            itl = fits.itl.at(met.itl_terms)
        return Speed(fits.ttft.at(met.ttft_terms), itl)

    def _meets(self, provider: str, model: str, prompt_tokens: int) -> Met:
        outlook = self._outlook(provider, model, prompt_tokens)
        return Met(prompt_tokens, self.load(provider, model), outlook)

    def _host(self, provider: str, model: str) -> _Host:
        name = host_of(provider, model)
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host()
        return host
