"""The guard of the administrative endpoints, which are apart from the data's.

They have no keys: they are for the person at the machine. So they answer to this machine only, to
no request that was passed on for another or that a web page had a browser send, and only under
names that a stranger's page cannot have (against DNS rebinding).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from headrace.gateway.admission import check_type, read_body
from headrace.gateway.disconnect import ClientGone
from headrace.protocol.errors import InvalidField, PermissionDenied
from headrace.protocol.json import decode_object

Handler = Callable[[Request], Awaitable[Response]]

MAX_BODY = 64 * 1024  # bytes
ADMIN = "headrace.admin"  # in the scope of a request that holds the admin key
PASSED_ON = ("forwarded", "x-forwarded-for", "x-real-ip")


def guarded(handler: Handler) -> Handler:
    """The handler for callers of this machine, and those who hold the admin key (`gateway.door`);
    others get PermissionDenied."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientGone:
            return Response(status_code=499)  # nobody reads it

    async def guard(request: Request) -> Response:
        if request.scope.get(ADMIN):
            return await answer(request)
        here = request.client is not None and _loopback(request.client.host)
        asked = request.url.hostname or ""
        if not here or any(name in request.headers for name in PASSED_ON):
            raise PermissionDenied("This endpoint answers to its own machine only.")
        if asked != "localhost" and not _loopback(asked):
            raise PermissionDenied("This endpoint answers under an address of its own machine.")
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise PermissionDenied("Another site may not ask for this.")
        return await answer(request)

    return guard


async def read_fields(request: Request, *names: str) -> dict[str, str]:
    """The strings of a JSON body that has these fields and no other.

    Raises MalformedBody, InvalidField, BodyTooLarge.
    """
    check_type(request.headers)
    fields = decode_object(await read_body(request.headers, request.receive, MAX_BODY))
    for name in names:
        if not isinstance(fields.get(name), str) or not fields[name].strip():
            raise InvalidField(name, "expected a string that is not empty.")
    for name in fields:
        if name not in names:
            raise InvalidField(name, f"expected no field but {', '.join(names)}.")
    return fields


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
