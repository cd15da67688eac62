"""The guard against web pages of strangers, before all else.

A page whose name was made to lead to this machine (DNS rebinding) can do what its reader's browser
can without a secret. A call that needs a key is nothing it can make, so once there are keys `/v1`
answers under any name, as behind a proxy that leaves the name as it was; what needs none does not.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.gateway.headers import headers_of
from headrace.gateway.keyring import Keyring
from headrace.protocol.errors import HeadraceError, PermissionDenied
from headrace.protocol.hosts import is_own_host

Refuse = Callable[[Request, HeadraceError], Response]


class Hosts:
    """An ASGI application before another one: it answers to this server's own names only."""

    def __init__(self, inside: ASGIApp, keyring: Keyring, configured: str, refuse: Refuse) -> None:
        self._inside = inside
        self._keyring = keyring
        self._configured = configured
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it."""
        if scope["type"] == "http":
            host = headers_of(scope).get("host")
            if (
                host is not None
                and not is_own_host(host, self._configured)
                and (self._keyring.open or not scope["path"].startswith("/v1/"))
            ):
                error = PermissionDenied("This host name is not served; use the server's address.")
                await self._refuse(Request(scope), error)(scope, receive, send)
                return
        await self._inside(scope, receive, send)
