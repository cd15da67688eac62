"""The record that one call carries through the stages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from headrace.gateway.attempts import Execution
from headrace.gateway.keyring import Charge
from headrace.gateway.services import Deployment
from headrace.observability.record import CacheOutcome
from headrace.protocol.answer import Answer
from headrace.protocol.generation import AnyRequest, Endpoint
from headrace.protocol.openai_answer import Identity
from headrace.router.decide import Decision
from headrace.router.plan import Attempt, Plan

CLIENT_CLOSED = 499  # what is said of a call whose client left before a status was sent

# Waits until a call that goes to a provider may go on.
Turn = Callable[[str], Awaitable[None]]


@dataclass(slots=True, kw_only=True)
class Call:
    """One call as far as it has come. Times in seconds; `started` is monotonic, `started_at`
    Unix time."""

    id: str
    tenant: str
    endpoint: Endpoint
    started: float
    started_at: float
    deployment: Deployment  # that of its start, to its end
    charge: Charge = field(default_factory=Charge)
    turn: Turn | None = None  # waits for the turn of a call that nobody waits for
    model: str = ""  # as the caller asked
    request: AnyRequest | None = None
    decision: Decision | None = None
    cache: CacheOutcome = "off"
    execution: Execution | None = None  # also that of others, where the answer is shared
    served: Attempt | None = None
    identity: Identity | None = None  # what names the answer, once it has begun
    answer: Answer = field(default_factory=Answer)
    first_delta: float | None = None  # monotonic, as `last_delta`
    last_delta: float | None = None

    @property
    def plan(self) -> Plan | None:
        """What was decided, once it was."""
        return None if self.decision is None else self.decision.plan
