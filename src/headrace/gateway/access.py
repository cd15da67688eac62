"""A log line for each request that makes no record of a call: which path, what came of it."""

from __future__ import annotations

from collections.abc import Callable, Container

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.gateway.call import CLIENT_CLOSED
from headrace.observability.lines import Lines


class AccessLog:
    """An ASGI application before another one. Requests to `recorded` paths have lines of their
    own. `clock` gives monotonic seconds."""

    def __init__(
        self,
        inside: ASGIApp,
        lines: Lines,
        recorded: Container[str],
        clock: Callable[[], float],
    ) -> None:
        self._inside = inside
        self._lines = lines
        self._recorded = recorded
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and say what came of it."""
        if scope["type"] != "http" or (
            scope["method"] == "POST" and scope["path"] in self._recorded
        ):
            await self._inside(scope, receive, send)
            return
        started, status = self._clock(), CLIENT_CLOSED

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._inside(scope, receive, sending)
        finally:
            self._lines.say(
                {
                    "event": "request",
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "duration": round(self._clock() - started, 6),
                }
            )
