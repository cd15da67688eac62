"""The router's records: what a decision is made of and what it says."""

from __future__ import annotations

from msgspec import Struct


class Attempt(Struct, frozen=True):
    """One try: which model at which provider, and why it stands at this place."""

    model: str  # the configured name
    provider: str
    upstream_model: str  # the provider's own name, or a model reference
    reason: str


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
    """What was known of the providers when a plan was made.

    `cooling` maps a provider's name to why it should not be tried now.
    """

    cooling: dict[str, str] = {}
