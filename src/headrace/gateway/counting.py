"""The endpoint that counts a prompt's tokens and generates nothing."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response

from headrace.gateway.admission import check_type, read_body
from headrace.gateway.attempts import fails_over
from headrace.gateway.connection import client_of
from headrace.gateway.disconnect import ClientGone, client_present
from headrace.gateway.door import HOLDER
from headrace.gateway.keyring import Charge
from headrace.gateway.services import Services
from headrace.protocol.anthropic import count_request
from headrace.protocol.anthropic_answer import count_body
from headrace.protocol.errors import HeadraceError, UpstreamError
from headrace.protocol.generation import GenerationRequest
from headrace.protocol.json import decode_object
from headrace.providers.base import count_tokens
from headrace.router.facts import facts_of


class Counting:
    """POST /v1/messages/count_tokens: by the model that would answer, first of its route."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def count(self, request: Request) -> Response:
        """Answer one call."""
        services = self._services
        charge = Charge(holder=request.scope.get(HOLDER))
        with services.admission, services.keyring.held(charge):
            services.admission.admit()
            check_type(request.headers)
            limit = services.configuration.server.max_body_bytes
            try:
                body = await read_body(request.headers, request.receive, limit)
                asked = structs.replace(count_request(decode_object(body)), tenant=charge.tenant)
                charge.permit(asked.model)
                with client_present(client_of(request.scope)):
                    tokens = await self._count(asked, request.headers)
            except ClientGone:
                return Response(status_code=499)  # nobody reads it
            return Response(count_body(tokens), media_type="application/json")

    async def _count(self, request: GenerationRequest, headers: Mapping[str, str]) -> int:
        services = self._services
        deployment = services.now
        facts = facts_of(request, deployment.rules.asked, headers, services.wall())
        decision = services.router.decide(facts, deployment.rules, deployment.version)
        error: HeadraceError = UpstreamError("No provider of this model can be tried now.")
        for attempt in decision.plan.attempts:
            provider = deployment.providers[attempt.provider]
            try:
                return await count_tokens(provider, request, attempt.upstream_model)
            except HeadraceError as problem:
                error = problem
                if not fails_over(problem):
                    break
        raise error
