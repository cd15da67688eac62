"""LoRA adapters loaded and dropped while the platform serves.

    GET    /admin/adapters          those that were loaded here
    POST   /admin/adapters          {"name", "model", "adapter"}: serve `adapter` (a reference)
                                    over the configured `model` as the model `name`
    DELETE /admin/adapters/NAME     take no new call for it; running ones end with it

An adapter is a model of the configuration in force like any other: the configuration is replaced
as a whole and has another version. The file is not written: what shall outlive the process
belongs there, as a model with an `adapter`. A change of the file leaves what was loaded here,
unless it gives the name to something else, or has the model under it no more.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headrace.config.schema import LOCAL, Configuration, Model
from headrace.gateway.admin import guarded, read_fields
from headrace.gateway.endpoints import JSON
from headrace.gateway.reload import remember
from headrace.gateway.services import Services
from headrace.protocol.errors import HeadraceError, InvalidField, ModelNotFound, NotFound
from headrace.providers.local import LocalProvider
from headrace.registry.errors import RegistryError
from headrace.router.rules import known_names

PATH = "/admin/adapters"
NAME = re.compile(r"[!-~](?:[\x20-~]{0,126}[!-~])?")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AddedAdapter:
    """An adapter that was loaded while serving: its name, its model's, and its reference."""

    name: str
    model: str
    adapter: str


class Adapters:
    """The endpoints. `fetch` gives the files of a reference; it may block. Each version of the
    configuration is kept in `directory`, for decisions to be made again."""

    def __init__(
        self,
        services: Services,
        local: LocalProvider,
        fetch: Callable[[str], Path],
        directory: Path,
    ) -> None:
        self._services = services
        self._directory = directory
        self._local = local
        self._fetch = fetch
        self._added: dict[str, AddedAdapter] = {}
        self._models: dict[str, Model] = {}  # as they are served, by the same names
        self._leaving: set[asyncio.Task[None]] = set()

    def routes(self) -> list[Route]:
        """The paths."""
        return [
            Route(PATH, guarded(self.index), methods=["GET"]),
            Route(PATH, guarded(self.load), methods=["POST"]),
            Route(PATH + "/{name:path}", guarded(self.drop), methods=["DELETE"]),
        ]

    async def index(self, request: Request) -> Response:
        """What was loaded here, by name."""
        return _json({"adapters": [asdict(one) for _, one in sorted(self._added.items())]})

    async def load(self, request: Request) -> Response:
        """Load one, in the place of the one that was loaded here under its name before."""
        added = AddedAdapter(**await read_fields(request, "name", "model", "adapter"))
        base = self._base(added)
        try:
            path = await asyncio.to_thread(self._fetch, added.adapter)
        except RegistryError as error:
            raise InvalidField("adapter", str(error)) from error
        # Never the name of another load: what was cached under that is another content's.
        unique = f"{added.name}:{self._services.new_id()}"
        await self._local.load_adapter(base.source, unique, path)
        try:
            base = self._base(added)  # again: the configuration may be another by now
        except HeadraceError:
            await self._local.drop_adapter(base.source, unique)
            raise
        before = self._models.get(added.name)
        self._added[added.name] = added
        self._models[added.name] = structs.replace(base, adapter=unique)
        await self._serve({added.name: self._models[added.name]})
        await self._release(before)
        return _json(asdict(added))

    async def drop(self, request: Request) -> Response:
        """Drop one that was loaded here."""
        name = request.path_params["name"]
        if name not in self._added:
            raise NotFound(f"No adapter '{name}' was loaded here.")
        added = self._added.pop(name)
        before = self._models.pop(name)
        await self._serve({name: None})
        await self._release(before)
        return _json(asdict(added))

    def carried(self, configuration: Configuration) -> Configuration:
        """A changed file's configuration, with what was loaded here; what has no place in it any
        more is dropped."""
        taken = known_names(configuration)
        models: dict[str, Model] = {}
        for name, model in list(self._models.items()):
            base = configuration.models.get(self._added[name].model)
            if name in taken or base is None or (base.source, base.adapter) != (model.source, None):
                log.warning("Adapter '%s' is dropped: the file's change leaves it no place.", name)
                del self._added[name], self._models[name]
                task = asyncio.create_task(self._release(model))
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
            else:
                models[name] = self._models[name] = structs.replace(base, adapter=model.adapter)
        if not models:
            return configuration
        return structs.replace(configuration, models={**configuration.models, **models})

    def _base(self, added: AddedAdapter) -> Model:
        """The model under an adapter. Raises InvalidField, ModelNotFound."""
        configuration = self._services.configuration
        if NAME.fullmatch(added.name) is None:
            raise InvalidField("name", "expected 1 to 128 printable ASCII characters.")
        if added.name in known_names(configuration) and added.name not in self._added:
            raise InvalidField("name", "another model or route has it.")
        base = configuration.models.get(added.model)
        if base is None:
            raise ModelNotFound(added.model, tuple(configuration.models))
        if base.provider != LOCAL or base.adapter is not None:
            raise InvalidField("model", "expected a model of the local engine without an adapter.")
        return base

    async def _serve(self, changes: Mapping[str, Model | None]) -> None:
        """Put a configuration in force with these models, or without them."""
        deployment = self._services.now
        every = {**deployment.configuration.models, **changes}
        models = {name: model for name, model in every.items() if model is not None}
        configuration = structs.replace(deployment.configuration, models=models)
        self._services.now = now = deployment.changed(configuration)
        await remember(self._directory, now)

    async def _release(self, model: Model | None) -> None:
        if model is not None and model.adapter is not None:
            await self._local.drop_adapter(model.source, model.adapter)


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type=JSON)
