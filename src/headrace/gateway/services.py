"""What the gateway is composed of."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from headrace.cache.exact import ExactCache
from headrace.cache.flight import SingleFlight
from headrace.config.schema import Configuration
from headrace.gateway.admission import Admission
from headrace.observability.metrics import Metrics
from headrace.observability.record import CallRecord
from headrace.providers.base import Provider
from headrace.router.health import Health

HEARTBEAT = 15.0  # seconds


_random = random.Random()


def new_id() -> str:
    """24 random hex digits: unique, but no secret."""
    return f"{_random.getrandbits(96):024x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The rooms behind the door, and the clocks and the randomness they share.

    `record` takes the record of each call; it must be quick and must not raise. `cache` is None
    where caching is off. `clock` gives monotonic seconds, `wall` Unix time. `heartbeat` is how
    long a stream may be silent before a comment line is sent, in seconds.
    """

    configuration: Configuration
    version: str
    providers: Mapping[str, Provider]
    health: Health
    record: Callable[[CallRecord], None]
    metrics: Metrics
    cache: ExactCache | None
    admission: Admission
    flights: SingleFlight = field(default_factory=SingleFlight)
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    new_id: Callable[[], str] = new_id
    heartbeat: float = HEARTBEAT
