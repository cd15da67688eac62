"""Local models in memory, over HTTP: see, load and unload them.

GET  /admin/models              the budget, and each model's state and bytes
POST /admin/models/NAME/load    load it now, unloading idle ones where that is needed
POST /admin/models/NAME/unload  free its memory; the next call of it loads it again
POST /admin/models/NAME/sleep   free its GPU's memory and keep its weights in the host's
POST /admin/models/NAME/wake    have it back on its GPU, as the next call of it would
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headrace.config.schema import LOCAL
from headrace.gateway.admin import guarded
from headrace.gateway.endpoints import JSON
from headrace.gateway.services import Services
from headrace.protocol.errors import InvalidField, ModelNotFound
from headrace.providers.local import LocalProvider

PATH = "/admin/models"


class Residents:
    """The endpoints."""

    def __init__(self, services: Services, local: LocalProvider) -> None:
        self._services = services
        self._local = local

    def routes(self) -> list[Route]:
        """The paths."""
        return [
            Route(PATH, guarded(self.index), methods=["GET"]),
            Route(PATH + "/{name:path}/load", guarded(self.load), methods=["POST"]),
            Route(PATH + "/{name:path}/wake", guarded(self.load), methods=["POST"]),
            Route(PATH + "/{name:path}/sleep", guarded(self.sleep), methods=["POST"]),
            Route(PATH + "/{name:path}/unload", guarded(self.unload), methods=["POST"]),
        ]

    async def index(self, request: Request) -> Response:
        """Every local model; those of one source are one engine."""
        residency = self._local.residency
        models = [
            self._about(name)
            for name, model in self._services.configuration.models.items()
            if model.provider == LOCAL
        ]
        return _json(
            {
                "budget": residency.budget,
                "used": residency.used,
                "host_used": residency.host_used,
                "models": models,
            }
        )

    async def load(self, request: Request) -> Response:
        """Load one; the answer comes when it is there."""
        name = request.path_params["name"]
        async with self._local.loaded(self._upstream(name)):
            return _json(self._about(name))

    async def sleep(self, request: Request) -> Response:
        """Let one sleep that no call uses."""
        name = request.path_params["name"]
        await self._local.sleep(self._local.source_of(self._upstream(name)))
        return _json(self._about(name))

    async def unload(self, request: Request) -> Response:
        """Unload one that no call uses."""
        name = request.path_params["name"]
        await self._local.residency.unload(self._local.source_of(self._upstream(name)))
        return _json(self._about(name))

    def _upstream(self, name: str) -> str:
        """What the local provider knows a model by. Raises ModelNotFound, InvalidField."""
        models = self._services.configuration.models
        if name not in models:
            raise ModelNotFound(name, tuple(models))
        if models[name].provider != LOCAL:
            raise InvalidField("model", "expected a model of the local engine.")
        return models[name].upstream

    def _about(self, name: str) -> dict[str, object]:
        source = self._local.source_of(self._upstream(name))
        resident = self._local.residency.models[source]
        return {
            "name": name,
            "source": source,
            "state": resident.state,
            "bytes": resident.bytes,
            "host_bytes": resident.host_bytes,
            "users": resident.users,
            "loads": resident.loads,
        }


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type=JSON)
