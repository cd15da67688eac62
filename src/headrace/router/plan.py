"""The router's records: what a decision is made of and what it says."""

from __future__ import annotations

from msgspec import Struct


class Attempt(Struct, frozen=True, omit_defaults=True):
    """One try: which model at which provider, and why it stands at this place.

    `ttft` and `itl` are predicted seconds, None where nothing is known; `cost` is the dollars that
    the request may cost there, `prompt_cost` those of its prompt alone; None where the price is not
    known.
    """

    model: str  # the configured name
    provider: str
    upstream_model: str  # the provider's own name, or a model reference
    reason: str
    ttft: float | None = None
    itl: float | None = None
    cost: float | None = 0.0
    prompt_cost: float | None = 0.0

    @property
    def host(self) -> str:
        """Whose health and speed count."""
        return host_of(self.provider, self.upstream_model)


def host_of(provider: str, upstream_model: str) -> str:
    """What fails together, and is as fast: one model at one provider."""
    return f"{provider}/{upstream_model}"


class Skipped(Struct, frozen=True):
    """A candidate that is not tried, and why."""

    model: str
    provider: str
    reason: str


class Conduct(Struct, frozen=True, omit_defaults=True):
    """How the attempts of a plan are carried out; the fields are those of a route."""

    retries: int = 0
    deadline: float | None = None
    hedge_after: float | None = None
    max_extra_cost: float | None = None
    continues: bool = False
    timed: bool = False  # when the first token comes matters: upstreams are asked to stream


class Plan(Struct, frozen=True):
    """A deterministic function of (facts, configuration, snapshot)."""

    route: str  # name of the rule, or `model:NAME` where no rule matched
    version: str  # of the configuration
    attempts: tuple[Attempt, ...]
    skipped: tuple[Skipped, ...] = ()
    conduct: Conduct = Conduct()


class Speed(Struct, frozen=True, array_like=True):
    """Seconds to the first token of this request and between tokens, as predicted."""

    ttft: float
    itl: float


class Snapshot(Struct, frozen=True, omit_defaults=True):
    """What was known when a plan was made.

    `cooling` maps a host (`host_of`), or a provider as a whole, to why it should not be tried now;
    `speeds` holds the hosts whose speed is known, `quality` the measured quality of models by
    their configured name, 0 to 1.
    """

    cooling: dict[str, str] = {}
    speeds: dict[str, Speed] = {}
    quality: dict[str, float] = {}
