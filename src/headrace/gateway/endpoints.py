"""The endpoints that generate nothing: models, health and metrics."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.config.capabilities import told
from headrace.gateway.door import HOLDER
from headrace.gateway.keyring import Holder
from headrace.gateway.services import Services
from headrace.observability.metrics import CONTENT_TYPE
from headrace.protocol.errors import ModelNotFound
from headrace.protocol.openai_answer import model_body, model_list_body
from headrace.providers.local import LocalProvider
from headrace.router.plan import host_of
from headrace.router.rules import known_names
from headrace.runtime.process import EngineProcess

JSON = "application/json"
# What models of our own engine are asked for, by what they do.
TASKS = {
    "generate": ("chat", "completions", "messages", "responses"),
    "embed": ("embeddings", "rerank"),
    "classify": ("rerank", "classify"),
}
ROUTED = "headrace"  # the owner of a name that stands for a route


class Endpoints:
    """Handlers over the services; `created` of a model is when this server started."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._created = int(services.wall())

    async def models(self, request: Request) -> Response:
        """GET /v1/models: every name a caller may ask for."""
        names = [(name, *self._told(name)) for name in self._known(request)]
        return Response(model_list_body(names, self._created), media_type=JSON)

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}; a name may hold slashes."""
        name = request.path_params["name"]
        known = self._known(request)
        if name not in known:
            raise ModelNotFound(name, known)
        return Response(model_body(name, self._created, *self._told(name)), media_type=JSON)

    def _told(self, name: str) -> tuple[str, dict[str, Any]]:
        """The owner of a name, and what is known about the model; of a route's name nothing."""
        services = self._services
        model = services.configuration.models.get(name)
        if model is None:
            return ROUTED, {}
        about = told(model, services.configuration)
        local = services.providers.get(model.provider)
        if isinstance(local, LocalProvider):
            about |= _of_engine(local.engine_of(model.upstream)[0], about)
        return model.provider, about

    def _known(self, request: Request) -> tuple[str, ...]:
        """The names that the caller's key may ask for."""
        names = known_names(self._services.configuration)
        holder: Holder | None = request.scope.get(HOLDER)
        if holder is None or not holder.key.models:
            return names
        return tuple(name for name in names if name in holder.key.models)

    async def live(self, request: Request) -> Response:
        """GET /health/live: the process answers."""
        return Response(b'{"status":"ok"}', media_type=JSON)

    async def ready(self, request: Request) -> Response:
        """GET /health/ready: 200 where at least one configured model can be served, else 503; and
        whether calls are recorded, which they are served without."""
        services = self._services
        cooling = services.router.health.cooling()
        for model in services.configuration.models.values():
            provider = services.providers[model.provider]
            well = cooling.keys().isdisjoint(
                (model.provider, host_of(model.provider, model.upstream))
            )
            if well and provider.ready(model.upstream):
                return _state(200, "ready", services)
        return _state(503, "not ready", services)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        body = await asyncio.to_thread(self._services.metrics.render)
        return Response(body, headers={"content-type": CONTENT_TYPE})


def _state(code: int, status: str, services: Services) -> Response:
    body = msgspec.json.encode({"status": status, "recording": services.recording()})
    return Response(body, status_code=code, media_type=JSON)


def _of_engine(engine: EngineProcess, about: dict[str, Any]) -> dict[str, Any]:
    """What an engine that was loaded knows of its model better."""
    if engine.loaded is None:
        return {}
    does = TASKS[engine.loaded.task]
    endpoints = [name for name in about["endpoints"] if name in does]
    return {"context_length": about["context_length"] or engine.loaded.context} | {
        "endpoints": endpoints
    }
