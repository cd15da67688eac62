"""The way of one call through the gateway, top to bottom.

read -> parse -> plan -> look up -> attempts -> frame -> record. Each stage is a plain function
over one `Call`; how a call ends, well or not, is decided here and nowhere else. Its record is
written before the last bytes of the answer are sent: a call whose end a client saw is on record.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

from msgspec import structs
from starlette.types import Receive, Scope, Send

from headrace.config.schema import LOCAL
from headrace.gateway import request_ids
from headrace.gateway.accounting import account
from headrace.gateway.admission import check_type, read_body
from headrace.gateway.call import CLIENT_CLOSED, Call, Turn
from headrace.gateway.connection import Client, client_of
from headrace.gateway.conversation import remember, resumed
from headrace.gateway.disconnect import ClientGone, client_present, close
from headrace.gateway.door import HOLDER
from headrace.gateway.faults import fault_of
from headrace.gateway.formats import FORMATS, FORMS
from headrace.gateway.frames import collect, heartbeats, pass_on, stream
from headrace.gateway.headers import headers_of
from headrace.gateway.keyring import Charge, Holder
from headrace.gateway.lookup import HEADER, Lookup, Wish, wish_of
from headrace.gateway.multipart import FORM_BYTES, Form, read_form
from headrace.gateway.reply import Reply, decision_headers
from headrace.gateway.services import Services
from headrace.protocol.errors import HeadraceError, Overloaded
from headrace.protocol.generation import AnyRequest, Endpoint, GenerationRequest
from headrace.protocol.json import decode_object
from headrace.protocol.media import Attachment, MediaRequest
from headrace.protocol.openai import MAX_PRIORITY
from headrace.protocol.openai_media import ReadForm
from headrace.router.decide import Decision
from headrace.router.facts import CHARACTERS_PER_TOKEN, UNSAID, facts_of
from headrace.router.plan import Plan

LARGE = 256 * 1024  # bytes; about a millisecond
LARGE_BODIES = ThreadPoolExecutor(1, "large-bodies")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it comes in."""

    headers: Mapping[str, str]
    receive: Receive
    client: Client


class Generations:
    """The ASGI application of one generating endpoint. `lookup` and `ids` are shared by all."""

    def __init__(
        self, services: Services, endpoint: Endpoint, lookup: Lookup, ids: request_ids.RequestIds
    ) -> None:
        self._services = services
        self._endpoint = endpoint
        self._lookup = lookup
        self._ids = ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call, whatever happens."""
        headers = headers_of(scope)
        call = self._call(scope, headers)
        with self._services.admission, call.deployment.calls:
            await self._answer(call, Asked(headers, receive, client_of(scope)), send)

    async def answer_later(self, scope: Scope, receive: Receive, send: Send, turn: Turn) -> None:
        """Answer a call that nobody waits for: it goes behind every other one, whenever its turn
        comes, and takes no place of theirs."""
        headers = headers_of(scope)
        call = self._call(scope, headers)
        call.turn = turn
        call.charge.later = True
        with call.deployment.calls:
            await self._answer(call, Asked(headers, receive, client_of(scope)), send)

    def _call(self, scope: Scope, headers: Mapping[str, str]) -> Call:
        services = self._services
        holder: Holder | None = scope.get(HOLDER)
        charge = Charge(holder=holder)
        return Call(
            id=self._ids.take(headers.get(request_ids.HEADER)),
            tenant=charge.tenant,
            charge=charge,
            endpoint=self._endpoint,
            started=services.clock(),
            started_at=services.wall(),
            deployment=services.now,
        )

    async def _answer(self, call: Call, asked: Asked, send: Send) -> None:
        services = self._services
        reply = Reply(send, FORMATS[self._endpoint], asked.client)
        error: HeadraceError
        try:
            if call.turn is None:
                services.admission.admit()
                services.keyring.enter(call.charge)
            last = await self._run(call, asked, reply)
            account(services, call, "ok", 200)
            if reply.started:
                await reply.end(last)
            else:
                await reply.whole(200, decision_headers(call), last)
            return
        except ClientGone:
            account(services, call, "cancelled", 200 if reply.started else CLIENT_CLOSED)
            return
        except HeadraceError as problem:
            error = problem
        except asyncio.CancelledError:  # the server stops, and has waited long enough
            error = Overloaded("The server is shutting down.", retry_after=1.0)
        except Exception as fault:
            log.exception("Call %s failed.", call.id)
            error = fault_of(fault, f"The server had an internal error. Request id: {call.id}.")
        if not reply.complete:
            status = 200 if reply.started else reply.form.error_status(error)
            account(services, call, "error", status, error)
            await reply.fail(decision_headers(call), error, call.id)

    async def _run(self, call: Call, asked: Asked, reply: Reply) -> bytes:
        """All stages up to the last bytes of the answer, which are left to send."""
        services, deployment = self._services, call.deployment
        settings = deployment.configuration
        if (read := FORMS.get(call.endpoint)) is not None:
            limit = settings.files.max_bytes + FORM_BYTES
            form = read_form(asked.headers, asked.receive, services.uploads, limit)
            async with form as sent:
                return await self._carry_out(call, formed(call, sent, read), asked, reply)
        check_type(asked.headers)
        limit, arrived = settings.server.max_body_bytes, asked.client.arrived
        body = await read_body(asked.headers, asked.receive, limit, arrived=arrived)
        request = await resumed(services, await parsed(call, body))
        return await self._carry_out(call, bounded(request, call.charge), asked, reply)

    async def _carry_out(
        self, call: Call, request: AnyRequest, asked: Asked, reply: Reply
    ) -> bytes:
        """From the request on."""
        services, deployment = self._services, call.deployment
        headers, client = asked.headers, asked.client
        if call.turn is not None:
            request = behind_others(request)
        call.request = request
        wish = wish_of(headers.get(HEADER))
        facts = facts_of(
            request,
            deployment.rules.asked,
            headers,
            call.started_at,
            budgeted=call.charge.budgeted,
        )
        call.decision = services.router.decide(facts, deployment.rules, deployment.version)
        provider = call.decision.plan.attempts[0].provider
        if call.turn is not None:
            await call.turn(provider)
        here = call.turn is None and provider == LOCAL
        with services.locally if here else nullcontext():
            return await self._execute(call, call.decision, request, wish, client, reply)

    async def _execute(
        self,
        call: Call,
        decision: Decision,
        request: AnyRequest,
        wish: Wish,
        client: Client,
        reply: Reply,
    ) -> bytes:
        services, facts = self._services, decision.facts
        await services.keyring.reserve(
            call.charge,
            request.model,
            decision.plan.attempts[0].model,
            facts.prompt_tokens + (facts.max_tokens or 0),
            most_of(decision.plan),
        )
        events = self._lookup.find(call, request, decision, wish)
        try:
            with client_present(client):
                if isinstance(request, MediaRequest):
                    last = await pass_on(services, call, events, reply)
                elif not isinstance(request, GenerationRequest) or not request.stream:
                    last = await collect(services, call, events, reply.form, request)
                else:
                    with heartbeats(reply, services.heartbeat):
                        last = await stream(services, call, events, reply, request)
                await remember(services, call, request)
        except BaseException:
            await close(events)
            raise
        await events.aclose()  # nothing to wait for: it has come to its end
        return last


def bounded(request: AnyRequest, charge: Charge) -> AnyRequest:
    """`request`, with a bound on its answer where the key's budget needs one."""
    if charge.budgeted and isinstance(request, GenerationRequest) and request.max_tokens is None:
        return structs.replace(request, max_tokens=UNSAID)
    return request


def behind_others(request: AnyRequest) -> AnyRequest:
    """`request`, of the least priority that there is."""
    if not isinstance(request, GenerationRequest):
        return request
    objectives = structs.replace(request.objectives, priority=-MAX_PRIORITY)
    return structs.replace(request, objectives=objectives)


def most_of(plan: Plan) -> float:
    """The most dollars that a plan can cost: every prompt, however often it is sent and as if each
    character were a token, and the dearest answer."""
    prompts = sum(attempt.prompt_cost or 0.0 for attempt in plan.attempts) * CHARACTERS_PER_TOKEN
    answer = max((a.cost or 0.0) - (a.prompt_cost or 0.0) for a in plan.attempts)
    return prompts * (1 + plan.conduct.retries) + answer


async def parsed(call: Call, body: bytes) -> AnyRequest:
    """The request in `body`; a large one is parsed beside the event loop, one at a time."""
    if len(body) < LARGE:
        return parse(call, body)
    return await asyncio.get_running_loop().run_in_executor(LARGE_BODIES, parse_large, call, body)


def formed(call: Call, sent: Form, read: ReadForm) -> AnyRequest:
    """The request in a form, for the call's tenant. Raises InvalidField."""
    call.model = (sent.get("model") or "")[:256]
    files = tuple(
        Attachment(one.name, one.filename, one.content_type, one.size, str(one.path))
        for one in sent.uploads
    )
    return structs.replace(read(sent.fields, files), tenant=call.tenant)


def parse_large(call: Call, body: bytes) -> AnyRequest:
    """As `parse`, while no garbage is collected: the collector would look through millions of new
    objects again and again, and hold up the event loop ten times as long as the decoder does."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return parse(call, body)
    finally:
        if collects:
            gc.enable()


def parse(call: Call, body: bytes) -> AnyRequest:
    """The parse stage: the request in `body`, for the call's tenant.

    Raises MalformedBody or InvalidField.
    """
    fields = decode_object(body)
    model = fields.get("model")
    if isinstance(model, str):
        call.model = model[:256]  # also on the record of a body that is refused below
    return structs.replace(FORMATS[call.endpoint].read(fields), tenant=call.tenant)
