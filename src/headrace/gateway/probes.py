"""Probes: asking those that nobody has called lately whether they are well.

A provider's probe asks for its list of models, which costs nothing; a model's asks it for one
token, which is paid for. Both feed the breaker that calls feed (`router.health`). A target that
cooled is tried by its probe as soon as its rest is over, and not by a caller. A probe that the
upstream refuses as wrong says nothing; then callers try that target, as without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import msgspec
from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headrace.config.schema import Configuration, Probe
from headrace.gateway.admin import guarded
from headrace.gateway.endpoints import JSON
from headrace.gateway.services import Deployment, Services
from headrace.gateway.trial import Ground, Trial
from headrace.protocol.errors import (
    HeadraceError,
    InputError,
    NotFound,
    RateLimited,
    UpstreamTimeout,
)
from headrace.protocol.generation import GenerationRequest, Message
from headrace.providers.base import Lister
from headrace.router.plan import Attempt, host_of

TICK = 0.5  # seconds between two looks at what is due
AT_ONCE = 16  # probes
PATH = "/admin/health"
QUESTION = GenerationRequest(
    endpoint="chat",
    model="",
    messages=(Message(role="user", content="Hi"),),
    max_tokens=1,
    stream=True,
)
METRICS = (
    ("headrace_probes", "sent", "Probes that were sent."),
    ("headrace_probes_failed", "failed", "Probes that failed."),
    ("headrace_probes_cost_dollars", "cost", "Cost of probes in US dollars."),
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """What is probed: a provider, or one of the configured models."""

    key: str  # as `Health` knows it
    provider: str
    model: str | None
    probe: Probe


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came of a target's probes. `due` and `at` are on the monotonic clock."""

    due: float
    refused: bool = False
    sent: int = 0
    failed: int = 0
    cost: float = 0.0  # dollars
    at: float | None = None  # of the last one's end
    took: float = 0.0  # seconds
    said: str = "never"


def targets_of(configuration: Configuration) -> Iterator[Target]:
    """What is to be probed. Of several names of one model at one provider the first counts."""
    for name, provider in configuration.providers.items():
        if provider.probe.every is not None:
            yield Target(name, name, None, provider.probe)
    seen: set[str] = set()
    for name, model in configuration.models.items():
        host = host_of(model.provider, model.upstream)
        if model.probe.every is not None and host not in seen:
            seen.add(host)
            yield Target(host, model.provider, name, model.probe)


class Probes:
    """Probes what the configuration in force says, from `start` to `close`."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tallies: dict[Target, Tally] = {}
        self.running: dict[Target, asyncio.Task[None]] = {}
        self._main: asyncio.Task[None] | None = None
        metrics = services.metrics
        for metric, field, told in METRICS:
            metrics.counter(metric, told, self._reader(field), "target")
        metrics.gauge(
            "headrace_cooling",
            "1 for each model or provider that is left alone now.",
            lambda: dict.fromkeys(services.router.health.cooling(), 1.0),
            "target",
        )

    def routes(self) -> list[Route]:
        """The path."""
        return [Route(PATH, guarded(self.index), methods=["GET"])]

    def start(self) -> None:
        """Look for what is due, from now on."""
        self._main = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Hang up what runs, and send no more."""
        tasks = [*self.running.values(), *([] if self._main is None else [self._main])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(TICK)

    def look(self) -> None:
        """Send the probes that are due, one at a time to each target."""
        services = self._services
        health, now = services.router.health, services.clock()
        deployment = services.now
        targets = list(targets_of(deployment.configuration))
        self._tallies = {
            target: self._tallies.get(target) or Tally(due=_after(target, now, services.jitter()))
            for target in targets
        }
        health.watch([target.key for target in targets if not self._tallies[target].refused])
        for target in targets:
            if target in self.running or len(self.running) >= AT_ONCE:
                continue
            tally = self._tallies[target]
            if tally.refused:
                continue
            stage = health.stage(target.key)
            if stage == "open" or health.stage(target.provider) == "open":
                continue
            if stage == "closed":
                heard = health.heard(target.key)
                if heard is not None:  # a call has told what the probe would
                    tally.due = max(tally.due, _after(target, heard, 1.0))
                if now < tally.due:
                    continue
            tally.due = _after(target, now, 0.9 + 0.2 * services.jitter())
            task = asyncio.create_task(self._send(target, tally, deployment))
            self.running[target] = task
            task.add_done_callback(partial(self._over, target))

    def _over(self, target: Target, _: asyncio.Task[None]) -> None:
        del self.running[target]

    async def _send(self, target: Target, tally: Tally, deployment: Deployment) -> None:
        clock = self._services.clock
        began = clock()
        tally.sent += 1
        with deployment.calls:  # its providers stay open
            error = await self._asked(target, tally, deployment)
        tally.at = clock()
        tally.took = tally.at - began
        tally.said = "ok" if error is None else error.message
        tally.refused = isinstance(error, InputError) and not isinstance(error, RateLimited)
        if tally.refused:
            log.warning("The probe of '%s' says nothing: %s", target.key, tally.said)
        elif error is not None:
            tally.failed += 1

    async def _asked(
        self, target: Target, tally: Tally, deployment: Deployment
    ) -> HeadraceError | None:
        """Ask, and tell the breaker; what went wrong, None where it is well."""
        health, model = self._services.router.health, target.model
        try:
            async with asyncio.timeout(target.probe.timeout):
                if model is None:
                    await self._list(target, deployment)
                else:
                    await self._generate(target, model, tally, deployment)
        except TimeoutError:
            error = UpstreamTimeout(f"No answer came within {target.probe.timeout:g} s.")
            if model is None:
                health.probed(target.provider, error)
            else:
                upstream = deployment.configuration.models[model].upstream
                health.failed(target.provider, upstream, error)
            return error
        except HeadraceError as error:
            return error
        return None

    async def _list(self, target: Target, deployment: Deployment) -> None:
        """Ask for the list of models."""
        health = self._services.router.health
        provider = deployment.providers[target.provider]
        if not isinstance(provider, Lister):
            raise NotFound("It has no list of models.")
        health.probing(target.provider)
        try:
            await provider.list_models()
        except HeadraceError as error:
            health.probed(target.provider, error)
            raise
        health.probed(target.provider, None)

    async def _generate(
        self, target: Target, model: str, tally: Tally, deployment: Deployment
    ) -> None:
        """Ask for one token; the breaker and the predictions hear of it as of any call."""
        services, configuration = self._services, deployment.configuration
        ground = Ground(
            configuration,
            deployment.providers,
            services.router,
            services.clock,
            services.clock(),
            1,
        )
        upstream = configuration.models[model].upstream
        request = structs.replace(QUESTION, model=model)
        trial = Trial(ground, Attempt(model, target.provider, upstream, "probe"), request)
        try:
            await trial.open()
            async with aclosing(trial.events()) as events:
                async for _ in events:
                    pass
        finally:
            tally.cost += sum(record.cost or 0.0 for record in ground.records)

    async def index(self, request: Request) -> Response:
        """GET /admin/health: what cools and why, and what the probes said."""
        services = self._services
        now = services.clock()
        health = [
            {"target": one.key, "state": one.stage, "why": one.why, "seconds": one.seconds}
            for one in services.router.health.illnesses()
        ]
        probes = [
            {
                "target": target.key,
                "asks": "one token" if target.model is not None else "the list of models",
                "every": target.probe.every,
                "sent": tally.sent,
                "failed": tally.failed,
                "cost": tally.cost,
                "said": tally.said,
                "seconds": round(tally.took, 6),
                "ago": None if tally.at is None else round(now - tally.at, 3),
            }
            for target, tally in self._tallies.items()
        ]
        return Response(msgspec.json.encode({"ill": health, "probes": probes}), media_type=JSON)

    def _reader(self, name: str) -> Callable[[], dict[str, float]]:
        return lambda: {
            target.key: float(getattr(tally, name)) for target, tally in dict(self._tallies).items()
        }


def _after(target: Target, moment: float, share: float) -> float:
    """The moment that is this share of the target's interval after another."""
    return moment + share * (target.probe.every or 0.0)
