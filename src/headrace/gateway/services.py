"""What the gateway is composed of."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace.cache.exact import ExactCache
from headrace.cache.flight import SingleFlight
from headrace.config.load import Loaded, version_of
from headrace.config.schema import Configuration
from headrace.gateway.admission import Admission
from headrace.gateway.keyring import Keyring
from headrace.observability.conversations import Conversations
from headrace.observability.metrics import Metrics
from headrace.observability.record import CallRecord
from headrace.providers.base import Provider
from headrace.router.decide import Router
from headrace.router.rules import Rulebook

HEARTBEAT = 15.0  # seconds


_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)  # or several processes would give the same ids


def new_id() -> str:
    """24 random hex digits: unique, but no secret."""
    return f"{_random.getrandbits(96):024x}"


@dataclass(frozen=True, slots=True)
class Deployment:
    """One version of the configuration, with what it set up. A call sees one, to its end."""

    configuration: Configuration
    version: str
    providers: Mapping[str, Provider]
    rules: Rulebook
    calls: Admission = field(default_factory=lambda: Admission(sys.maxsize))  # that run on it

    @classmethod
    def of(cls, loaded: Loaded, providers: Mapping[str, Provider]) -> Deployment:
        """The deployment of `loaded` on `providers`."""
        configuration = loaded.configuration
        return cls(configuration, loaded.version, providers, Rulebook(configuration))

    def changed(self, configuration: Configuration) -> Deployment:
        """The deployment of another configuration on the same providers: who waits for their
        last call waits for those of both."""
        rules = Rulebook(configuration)
        version = version_of(configuration)
        return Deployment(configuration, version, self.providers, rules, self.calls)


@dataclass(slots=True, kw_only=True)
class Services:
    """The rooms behind the door, and the clocks and the randomness they share.

    `now` is what new calls get; it is replaced as a whole when the configuration changes.
    `record` takes the record of each call; it must be quick and must not raise; `recording` says
    whether records are kept now. `cache` is None
    where caching is off, `conversations` where content is not kept. `locally` counts the calls
    that somebody waits for on our own engines. `uploads` is the folder where files of requests are
    while they run. `clock` gives monotonic seconds, `wall` Unix time.
    `heartbeat` is how long a stream may be silent before a comment line is sent, in seconds.
    """

    now: Deployment
    router: Router
    record: Callable[[CallRecord], None]
    recording: Callable[[], bool]
    metrics: Metrics
    cache: ExactCache | None
    admission: Admission
    keyring: Keyring
    uploads: Path
    locally: Admission = field(default_factory=lambda: Admission(sys.maxsize))
    conversations: Conversations | None = None
    flights: SingleFlight = field(default_factory=SingleFlight)
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    new_id: Callable[[], str] = new_id
    admin_key: str | None = None  # the secret itself
    jitter: Callable[[], float] = _random.random
    heartbeat: float = HEARTBEAT

    @property
    def configuration(self) -> Configuration:
        """That of new calls."""
        return self.now.configuration

    @property
    def version(self) -> str:
        """That of new calls."""
        return self.now.version

    @property
    def providers(self) -> Mapping[str, Provider]:
        """Those of new calls."""
        return self.now.providers
