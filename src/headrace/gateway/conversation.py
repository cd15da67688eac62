"""Conversations that the server remembers: `previous_response_id`, and stored responses."""

from __future__ import annotations

import asyncio
import logging

from msgspec import structs
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import Response

from headrace.gateway.call import Call
from headrace.gateway.door import HOLDER
from headrace.gateway.faults import fault_of
from headrace.gateway.keyring import Charge
from headrace.gateway.queries import query_of
from headrace.gateway.services import Services
from headrace.observability.conversations import StoredResponse
from headrace.protocol.errors import NotFound
from headrace.protocol.generation import AnyRequest, GenerationRequest, Message
from headrace.protocol.responses import INSTRUCTIONS, PREVIOUS, STORE
from headrace.protocol.responses_answer import deleted_body, turn_of, whole_body
from headrace.protocol.responses_items import ItemsPage, items_body

log = logging.getLogger(__name__)


async def resumed(services: Services, request: AnyRequest) -> AnyRequest:
    """`request` with the turns of the conversation that it goes on with before its own.

    Raises NotFound where its tenant has no such response.
    """
    if not isinstance(request, GenerationRequest) or request.dialect != "responses":
        return request
    previous = request.extra.get(PREVIOUS)
    if not isinstance(previous, str):
        return request
    conversations = services.conversations
    found = None
    if conversations is not None:
        found = await asyncio.to_thread(conversations.find, previous, request.tenant)
    if found is None:
        raise NotFound(f"There is no response '{previous[:80]}'.", param=PREVIOUS)
    own = request.messages or ()
    orders = own[:1] if INSTRUCTIONS in request.extra else ()  # they stand first
    return structs.replace(request, messages=(*orders, *found.messages, *own[len(orders) :]))


async def remember(services: Services, call: Call, request: AnyRequest) -> None:
    """Store the call's response, unless its caller said not to; before its end is told."""
    conversations, identity = services.conversations, call.identity
    if (
        not isinstance(request, GenerationRequest)
        or request.dialect != "responses"
        or conversations is None
        or identity is None
        or request.extra.get(STORE) is False
    ):
        return
    response = StoredResponse(
        id=identity.id,
        tenant=call.tenant,
        created_at=call.started_at,
        body=whole_body(identity, request, call.answer),
        messages=(*_remembered(request), turn_of(call.answer.choices[0])),
    )
    try:
        await asyncio.to_thread(conversations.keep, response)
    except SQLAlchemyError as error:
        log.exception("The response of call %s could not be stored.", call.id)
        raise fault_of(error, "The response could not be stored.") from None


def _remembered(request: GenerationRequest) -> tuple[Message, ...]:
    """The conversation without its instructions, which hold for one response only."""
    messages = request.messages or ()
    return messages[1:] if INSTRUCTIONS in request.extra else messages


class StoredResponses:
    """Handlers of the responses that are stored."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def read(self, request: Request) -> Response:
        """GET /v1/responses/{id}."""
        return Response((await self._found(request)).body, media_type="application/json")

    async def items(self, request: Request) -> Response:
        """GET /v1/responses/{id}/input_items: what it answers, without its instructions."""
        page = query_of(request, ItemsPage)
        found = await self._found(request)
        body = items_body(found.id, found.messages[:-1], page)  # the last is the answer
        return Response(body, media_type="application/json")

    async def _found(self, request: Request) -> StoredResponse:
        id, conversations = request.path_params["id"], self._services.conversations
        found = None
        if conversations is not None:
            found = await asyncio.to_thread(conversations.find, id, _tenant(request))
        if found is None:
            raise _unknown(id)
        return found

    async def drop(self, request: Request) -> Response:
        """DELETE /v1/responses/{id}."""
        id, conversations = request.path_params["id"], self._services.conversations
        tenant = _tenant(request)
        if conversations is None or not await asyncio.to_thread(conversations.drop, id, tenant):
            raise _unknown(id)
        return Response(deleted_body(id), media_type="application/json")


def _tenant(request: Request) -> str:
    """Who asks: only its own responses are there for it."""
    return Charge(holder=request.scope.get(HOLDER)).tenant


def _unknown(id: str) -> NotFound:
    return NotFound(f"There is no response '{id[:80]}'.")
