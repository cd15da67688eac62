"""The endpoints of files and batches, as OpenAI's clients ask for them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from headrace.gateway.admission import check_type, read_body
from headrace.gateway.disconnect import ClientGone
from headrace.gateway.door import HOLDER
from headrace.gateway.keyring import Charge
from headrace.gateway.multipart import FORM_BYTES, Form, read_form
from headrace.gateway.offline.runner import Runner
from headrace.gateway.offline.store import KEPT, Full, OfflineStore
from headrace.gateway.queries import invalid, query_of
from headrace.gateway.services import Services
from headrace.protocol.errors import (
    BodyTooLarge,
    InputError,
    InvalidField,
    NotFound,
    RateLimited,
)
from headrace.protocol.json import decode_object
from headrace.protocol.openai import convert
from headrace.protocol.openai_batches import Batch, BatchEndpoint, File, list_body

JSON = "application/json"
LIVE = 64  # batches of one key that are not over
WINDOW = 86_400  # seconds, "24h"

Seconds = Annotated[int, Meta(ge=3600, le=30 * 86_400)]
Tag = Annotated[str, Meta(max_length=64)]
Value = Annotated[str, Meta(max_length=512)]


class NewBatch(Struct, frozen=True):
    """The batch that is asked for."""

    input_file_id: str
    endpoint: BatchEndpoint
    completion_window: Literal["24h"]
    metadata: Annotated[dict[Tag, Value], Meta(max_length=16)] | None = None


class FileForm(Struct):
    """The fields of a form with a file."""

    purpose: Literal["batch"]


class FilesPage(Struct, frozen=True):
    """Which files to list."""

    limit: Annotated[int, Meta(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    purpose: str | None = None


class BatchesPage(Struct, frozen=True):
    """Which batches to list."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    after: str | None = None


class Offline:
    """Handlers over the store; `runner` is told of what is new."""

    def __init__(self, services: Services, store: OfflineStore, runner: Runner) -> None:
        self._services = services
        self._store = store
        self._runner = runner

    def routes(self) -> list[Route]:
        """The paths."""
        return [
            Route("/v1/files", self.upload, methods=["POST"]),
            Route("/v1/files", self.files, methods=["GET"]),
            Route("/v1/files/{id}", self.file, methods=["GET"]),
            Route("/v1/files/{id}", self.drop, methods=["DELETE"]),
            Route("/v1/files/{id}/content", self.content, methods=["GET"]),
            Route("/v1/batches", self.create, methods=["POST"]),
            Route("/v1/batches", self.batches, methods=["GET"]),
            Route("/v1/batches/{id}", self.batch, methods=["GET"]),
            Route("/v1/batches/{id}/cancel", self.cancel, methods=["POST"]),
        ]

    async def upload(self, request: Request) -> Response:
        """POST /v1/files: a form of `file`, `purpose` and `expires_after[seconds]`."""
        settings = self._services.configuration.files
        limit = settings.max_bytes + FORM_BYTES
        async with self._taken(request) as tenant:
            try:
                form = read_form(request.headers, request.receive, self._store.folder, limit)
                async with form as read:
                    return _json(await self._stored(read, tenant))
            except ClientGone:
                return Response(status_code=499)  # nobody reads it

    async def _stored(self, form: Form, tenant: str) -> File:
        settings, now = self._services.configuration.files, int(self._services.wall())
        convert(dict(form.fields), FileForm)
        upload = form.upload("file")
        if upload.size > settings.max_bytes:
            raise BodyTooLarge(f"The file is over the limit of {settings.max_bytes} bytes.")
        file = File(
            id=f"file-{self._services.new_id()}",
            bytes=upload.size,
            created_at=now,
            expires_at=now + _kept(form),
            filename=upload.filename[:256],
            purpose="batch",
        )
        store = self._store

        def keep() -> None:
            with upload.path.open("rb") as bytes:
                os.fsync(bytes.fileno())
            os.rename(upload.path, store.path(file.id))
            try:
                store.add_file(file, tenant, settings.max_total_bytes)
            except BaseException:
                store.path(file.id).unlink()
                raise

        try:
            await asyncio.to_thread(keep)
        except Full:
            most = settings.max_total_bytes
            raise BodyTooLarge(f"Your files would be over {most} bytes together.") from None
        return file

    async def files(self, request: Request) -> Response:
        """GET /v1/files."""
        page = query_of(request, FilesPage)
        found = await asyncio.to_thread(
            self._store.files,
            _tenant(request),
            page.purpose,
            page.after,
            page.limit + 1,
            page.order == "asc",
        )
        return Response(list_body(found[: page.limit], len(found) > page.limit), media_type=JSON)

    async def file(self, request: Request) -> Response:
        """GET /v1/files/{id}."""
        return _json(await self._file(request))

    async def content(self, request: Request) -> Response:
        """GET /v1/files/{id}/content: its bytes, as they are read from the disk."""
        file = await self._file(request)
        return FileResponse(
            self._store.path(file.id), media_type="application/octet-stream", filename="content"
        )

    async def drop(self, request: Request) -> Response:
        """DELETE /v1/files/{id}."""
        id = request.path_params["id"]
        if not await asyncio.to_thread(self._store.drop_file, id, _tenant(request)):
            raise _no_file(id)
        return _json({"id": id, "object": "file", "deleted": True})

    async def create(self, request: Request) -> Response:
        """POST /v1/batches."""
        async with self._taken(request) as tenant:
            check_type(request.headers)
            limit = self._services.configuration.server.max_body_bytes
            try:
                body = await read_body(request.headers, request.receive, limit)
            except ClientGone:
                return Response(status_code=499)  # nobody reads it
            wish = _wished(decode_object(body))
            file = await asyncio.to_thread(self._store.file, wish.input_file_id, tenant)
            if file is None or file.purpose != "batch":
                raise InvalidField("input_file_id", "expected a file of purpose 'batch'.")
            now = int(self._services.wall())
            batch = Batch(
                id=f"batch_{self._services.new_id()}",
                endpoint=wish.endpoint,
                input_file_id=file.id,
                created_at=now,
                expires_at=now + WINDOW,
                metadata=wish.metadata,
            )
            try:
                await asyncio.to_thread(self._store.add_batch, batch, tenant, LIVE)
            except Full:
                raise RateLimited(f"You have {LIVE} batches under way already.") from None
            self._runner.poke(batch.id)
            return _json(batch)

    async def batches(self, request: Request) -> Response:
        """GET /v1/batches."""
        page = query_of(request, BatchesPage)
        found = await asyncio.to_thread(
            self._store.batches, _tenant(request), page.after, page.limit + 1
        )
        return Response(list_body(found[: page.limit], len(found) > page.limit), media_type=JSON)

    async def batch(self, request: Request) -> Response:
        """GET /v1/batches/{id}."""
        return _json(await self._batch(request))

    async def cancel(self, request: Request) -> Response:
        """POST /v1/batches/{id}/cancel: no further line is asked, and those under way hang up."""
        batch = await self._batch(request)
        now = int(self._services.wall())

        def change(stored: Batch) -> Batch:
            if stored.status == "cancelling":
                return stored
            if stored.status not in ("validating", "in_progress"):
                raise InputError(f"A batch that is {stored.status} cannot be cancelled.")
            return msgspec.structs.replace(stored, status="cancelling", cancelling_at=now)

        batch = await asyncio.to_thread(self._store.change, batch.id, change)
        self._runner.poke(batch.id)
        return _json(batch)

    async def _file(self, request: Request) -> File:
        id = request.path_params["id"]
        found = await asyncio.to_thread(self._store.file, id, _tenant(request))
        if found is None:
            raise _no_file(id)
        return found

    async def _batch(self, request: Request) -> Batch:
        id = request.path_params["id"]
        found = await asyncio.to_thread(self._store.batch, id, _tenant(request))
        if found is None:
            raise NotFound(f"There is no batch '{id[:80]}'.")
        return found

    @asynccontextmanager
    async def _taken(self, request: Request) -> AsyncIterator[str]:
        """Count a call that stores something; whose it is."""
        services = self._services
        charge = Charge(holder=request.scope.get(HOLDER))
        with services.admission, services.keyring.held(charge):
            services.admission.admit()
            yield charge.tenant


def _tenant(request: Request) -> str:
    """Who asks: only its own are there for it."""
    return Charge(holder=request.scope.get(HOLDER)).tenant


def _no_file(id: str) -> NotFound:
    return NotFound(f"There is no file '{id[:80]}'.")


def _kept(form: Form) -> int:
    """How many seconds a file is kept. Raises InvalidField."""
    said = form.get("expires_after[seconds]")
    if said is None:
        return KEPT
    try:
        return msgspec.convert(said, Seconds, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidField("expires_after[seconds]", f"{error}.") from None


def _wished(fields: dict[str, Any]) -> NewBatch:
    try:
        return msgspec.convert(fields, NewBatch)
    except msgspec.ValidationError as error:
        raise invalid(error) from None


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type=JSON)
