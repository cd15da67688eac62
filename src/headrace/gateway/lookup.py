"""The cache stage: a stored answer, a running one to share, or a new execution.

Eligible are deterministic requests (temperature 0, or a seed) and those whose caller says
`x-headrace-cache: on`; `off` bypasses. Tool calls are repeated only to a caller who says `on`. What
passes through (images, sound) is not kept. Only an answer of the plan's first attempt is stored: a
fallback's must not stand in for it once it is back.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Literal
from weakref import WeakValueDictionary

import msgspec
from msgspec import structs

from headrace.cache.exact import storable
from headrace.cache.key import cache_key
from headrace.config.schema import Configuration
from headrace.gateway.attempts import Execution
from headrace.gateway.call import Call
from headrace.gateway.disconnect import Events
from headrace.gateway.services import Services
from headrace.protocol.errors import InvalidField
from headrace.protocol.generation import AnyRequest, Event, Finished, GenerationRequest
from headrace.protocol.media import MediaRequest
from headrace.router.decide import Decision
from headrace.router.plan import Plan

HEADER = "x-headrace-cache"

Wish = Literal["on", "off"] | None


def wish_of(header: str | None) -> Wish:
    """What the caller wants of the cache. Raises InvalidField."""
    if header is None:
        return None
    value = header.strip().lower()
    if value == "on":
        return "on"
    if value == "off":
        return "off"
    raise InvalidField(HEADER, "expected 'on' or 'off'.")


class Lookup:
    """Finds the events of a call: stored, shared or new."""

    def __init__(self, services: Services) -> None:
        self._services = services
        # What the listeners of a flight need to know of it, for as long as it flies.
        self._executions: WeakValueDictionary[bytes, Execution] = WeakValueDictionary()

    def find(self, call: Call, request: AnyRequest, decision: Decision, wish: Wish) -> Events:
        """The events of the call's answer; says on the call where they come from."""
        services = self._services
        cache, plan, deployment = services.cache, decision.plan, call.deployment
        wanted = wish != "off" and (wish == "on" or request.deterministic)
        alone = cache is None or not wanted or isinstance(request, MediaRequest)
        if not alone and isinstance(request, GenerationRequest):
            request = structs.replace(request, stream=True)  # whoever joins later may stream
        execution = Execution(
            request,
            decision,
            deployment.configuration,
            deployment.providers,
            services.router,
            services.clock,
            services.jitter,
        )
        if cache is None or alone:
            call.execution = execution
            return execution.events()
        key = cache_key(request, identity(plan, deployment.configuration))
        stored = cache.get(key)
        if stored is not None and storable(stored, tool_calls=wish == "on"):
            call.cache = "hit"
            call.served = plan.attempts[0]
            return _replay(stored)

        def keep(events: tuple[Event, ...]) -> None:
            if execution.served is plan.attempts[0] and not execution.continued:
                cache.put(key, events, tool_calls=wish == "on")

        shared = services.flights.join(key, lambda: _kept(execution, keep))
        if shared.leader:
            self._executions[key] = execution
        call.cache = "miss" if shared.leader else "shared"
        call.execution = self._executions.get(key)
        return shared


def identity(plan: Plan, configuration: Configuration) -> str:
    """What answers a plan: its attempts in order, with all that configures them."""
    return msgspec.json.encode(
        [
            (
                attempt.provider,
                attempt.upstream_model,
                configuration.models.get(attempt.model),
                configuration.providers.get(attempt.provider),
            )
            for attempt in plan.attempts
        ]
    ).decode()


async def _replay(events: tuple[Event, ...]) -> AsyncGenerator[Event, None]:
    for event in events:
        yield event


async def _kept(
    execution: Execution, keep: Callable[[tuple[Event, ...]], None]
) -> AsyncGenerator[Event, None]:
    events: list[Event] = []
    generation = execution.events()
    try:
        async for event in generation:
            events.append(event)
            # Before the last event is out: who has seen it may leave, and end this with it.
            if isinstance(event, Finished):
                keep(tuple(events))
            yield event
    finally:
        await generation.aclose()
