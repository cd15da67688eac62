"""The router's records: what a decision is made of and what it says."""

from __future__ import annotations

from msgspec import Struct

from headrace.config.schema import LOCAL


class Attempt(Struct, frozen=True):
    """One try: which model at which provider, and why it stands at this place."""

    model: str  # the configured name
    provider: str
    upstream_model: str  # the provider's own name, or a model reference
    reason: str

    @property
    def host(self) -> str:
        """Whose health counts."""
        return host_of(self.provider, self.upstream_model)


def host_of(provider: str, upstream_model: str) -> str:
    """What fails together: a remote provider as a whole, a local model by itself."""
    return f"{LOCAL}/{upstream_model}" if provider == LOCAL else provider


class Skipped(Struct, frozen=True):
    """A candidate that is not tried, and why."""

    model: str
    provider: str
    reason: str


class Plan(Struct, frozen=True):
    """A deterministic function of (request, configuration, health snapshot)."""

    route: str  # name of the rule, or `model:NAME` where no rule matched
    version: str  # of the configuration
    attempts: tuple[Attempt, ...]
    skipped: tuple[Skipped, ...] = ()


class HealthSnapshot(Struct, frozen=True):
    """What was known of the hosts (`host_of`) when a plan was made.

    `cooling` maps a host to why it should not be tried now.
    """

    cooling: dict[str, str] = {}
