"""The ASGI application: which path leads where, and what every other path says."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.gateway import request_ids
from headrace.gateway.conversation import StoredResponses
from headrace.gateway.counting import Counting
from headrace.gateway.door import Door, Refuse
from headrace.gateway.endpoints import JSON, Endpoints
from headrace.gateway.faults import disk_full
from headrace.gateway.formats import format_of_path
from headrace.gateway.hosts import Hosts
from headrace.gateway.key_admin import key_routes
from headrace.gateway.lookup import Lookup
from headrace.gateway.openapi.document import document_routes
from headrace.gateway.pipeline import Generations
from headrace.gateway.services import Services
from headrace.protocol.errors import (
    HeadraceError,
    InputError,
    InternalFault,
    MethodNotAllowed,
    NotFound,
    StorageFull,
)
from headrace.protocol.generation import Endpoint
from headrace.protocol.hosts import is_loopback

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]

ANSWERING: Mapping[str, Endpoint] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/messages": "messages",
    "/v1/responses": "responses",
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "rerank",
    "/v1/classify": "classify",
    "/v1/images/generations": "images",
    "/v1/images/edits": "image_edits",
    "/v1/audio/speech": "speech",
    "/v1/audio/transcriptions": "transcriptions",
    "/v1/audio/translations": "translations",
    "/v1/moderations": "moderations",
}

log = logging.getLogger(__name__)


def generations(services: Services) -> dict[Endpoint, Generations]:
    """What answers each generating endpoint."""
    lookup, ids = Lookup(services), request_ids.RequestIds(services.new_id)
    return {
        endpoint: Generations(services, endpoint, lookup, ids) for endpoint in ANSWERING.values()
    }


def build(
    services: Services,
    answers: Mapping[Endpoint, Generations],
    extra_routes: Sequence[BaseRoute] = (),
    lifespan: Lifespan | None = None,
) -> ASGIApp:
    """The gateway over `services`, whose `generations` are `answers`; `extra_routes` come after
    its own paths."""
    endpoints = Endpoints(services)
    answering = {path: answers[endpoint] for path, endpoint in ANSWERING.items()}
    stored = StoredResponses(services)
    routes: list[BaseRoute] = [
        *(Route(path, generations, methods=["POST"]) for path, generations in answering.items()),
        Route("/v1/messages/count_tokens", Counting(services).count, methods=["POST"]),
        Route("/v1/responses/{id}", stored.read, methods=["GET"]),
        Route("/v1/responses/{id}", stored.drop, methods=["DELETE"]),
        Route("/v1/responses/{id}/input_items", stored.items, methods=["GET"]),
        Route("/v1/models", endpoints.models),
        Route("/v1/models/{name:path}", endpoints.model),
        Route("/health/live", endpoints.live),
        Route("/health/ready", endpoints.ready),
        Route("/metrics", endpoints.metrics),
        *document_routes(),
        *key_routes(services.keyring),
        *extra_routes,
    ]

    def failed(request: Request, error: HeadraceError) -> Response:
        theirs = request.headers.get(request_ids.HEADER)
        request_id = theirs if request_ids.usable(theirs) else request_ids.new(services.new_id)
        form = format_of_path(request.url.path)
        return Response(
            form.error_body(error, request_id),
            status_code=form.error_status(error),
            headers={request_ids.HEADER: request_id},
            media_type=JSON,
        )

    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers=_handlers(failed),
    )
    app.router.redirect_slashes = False  # an unknown path is said to be unknown
    host = services.configuration.server.host
    door = Door(_Straight(answering, app), services.keyring, services.admin_key, failed)
    return Hosts(door, services.keyring, host, failed) if is_loopback(host) else door


def _handlers(failed: Refuse) -> dict[Any, Callable[[Request, Exception], Awaitable[Response]]]:
    """What answers each kind of error; `failed` makes the answer of a known one."""

    async def on_known(request: Request, error: Exception) -> Response:
        if not isinstance(error, HeadraceError):
            raise TypeError("not an error of this platform") from error
        return failed(request, error)

    async def on_http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise TypeError("not an HTTP error") from error
        path, method = request.url.path, request.method
        known: HeadraceError
        if error.status_code == NotFound.status:
            known = NotFound(f"There is no '{path}' here.")
        elif error.status_code == MethodNotAllowed.status:
            known = MethodNotAllowed(f"'{path}' does not take {method}.")
        else:
            known = InputError(error.detail)
        response = failed(request, known)
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
        return response

    async def on_storage(request: Request, error: Exception) -> Response:
        if not disk_full(error):
            raise error
        log.error("'%s' is refused, since the disk is full: %s", request.url.path, error)
        return failed(request, StorageFull())

    async def on_unexpected(request: Request, error: Exception) -> Response:
        # The server logs the traceback: it is raised again behind this answer.
        return failed(request, InternalFault())

    return {
        HeadraceError: on_known,
        HTTPException: on_http,
        OSError: on_storage,
        DBAPIError: on_storage,
        Exception: on_unexpected,
    }


class _Straight:
    """An ASGI application before `others`: calls go straight to their handlers, which answer all
    that can go wrong themselves, past what looks for the path and for errors."""

    def __init__(self, answering: Mapping[str, ASGIApp], others: ASGIApp) -> None:
        self._answering = answering
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._others
        if scope["type"] == "http" and scope["method"] == "POST":
            app = self._answering.get(scope["path"], app)
        await app(scope, receive, send)
