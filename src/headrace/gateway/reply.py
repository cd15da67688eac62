"""What goes out to one client: ASGI messages and the headers that say what was decided."""

from __future__ import annotations

import asyncio
import math
from functools import lru_cache
from urllib.parse import quote

from starlette.types import Send

from headrace.gateway.call import Call
from headrace.gateway.connection import Client, Headers
from headrace.gateway.disconnect import ClientGone
from headrace.gateway.formats import FORMATS, Format, StreamEncoder
from headrace.protocol import sse
from headrace.protocol.errors import HeadraceError

JSON = "application/json"
PATIENCE = 60.0  # seconds that a client may leave its connection full

_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class Reply:
    """One response in the caller's format: whole, or a stream whose headers go out with its first
    bytes."""

    def __init__(
        self, send: Send, form: Format, client: Client, patience: float = PATIENCE
    ) -> None:
        self.form = form
        self._send = send
        self._client = client
        self._encoder: StreamEncoder | None = None
        self._patience = patience
        self.started = False
        self.complete = False
        self.writes = 0  # how many times frames were sent

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send everything at once."""
        headers += [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(body))]
        self.started = self.complete = True
        if self._client.answer(status, headers, body):
            return
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def open_stream(self, headers: Headers, encoder: StreamEncoder) -> None:
        """Send the headers of a stream of events, with the first frames, which follow at once;
        from here on the status cannot change, and `encoder` says what goes wrong."""
        self._encoder = encoder
        headers += [
            (b"content-type", sse.CONTENT_TYPE.encode()),
            (b"cache-control", b"no-cache, no-transform"),
            (b"x-accel-buffering", b"no"),  # nginx would hold events back
        ]
        self.started = True
        self._client.hold()
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def open_raw(self, headers: Headers, content_type: str) -> None:
        """Send the headers of an answer that passes through. A fault after them cuts it off."""
        headers.append((b"content-type", content_type.encode("latin-1", "replace")))
        self.started = True
        self._client.hold()
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, frames: bytes) -> None:
        """Send frames; waits while the connection has no room.

        Raises ClientGone where it has none for too long: nobody reads.
        """
        self.writes += 1
        message = {"type": "http.response.body", "body": frames, "more_body": True}
        if not self._client.full:
            await self._send(message)
            return
        try:
            async with asyncio.timeout(self._patience):
                await self._send(message)
        except TimeoutError:
            raise ClientGone from None

    async def end(self, frames: bytes) -> None:
        """Send the last frames."""
        self.complete = True
        await self._send({"type": "http.response.body", "body": frames})

    async def fail(self, headers: Headers, error: HeadraceError, request_id: str) -> None:
        """Tell the client of `error`: by status and body, or in band where the headers are out.

        A broken stream carries an error event and nothing that says that it ended well; what has no
        events is cut off.
        """
        if self.complete:
            return
        if self._encoder is not None:
            await self.end(self._encoder.failure(error, request_id))
            return
        if self.started:
            self.complete = True
            self._client.drop()
            return
        if error.retry_after is not None:
            headers.append((b"retry-after", b"%d" % math.ceil(max(error.retry_after, 0))))
        body = self.form.error_body(error, request_id)
        await self.whole(self.form.error_status(error), headers, body)


def decision_headers(call: Call) -> Headers:
    """The request id, and what has been decided about the call so far."""
    headers = [(b"x-request-id", call.id.encode("ascii"))]
    if (id_header := FORMATS[call.endpoint].id_header) is not None:
        headers.append((id_header, call.id.encode("ascii")))
    if call.served is not None:
        headers += [
            (b"x-headrace-model", header_value(call.served.model)),
            (b"x-headrace-provider", header_value(call.served.provider)),
        ]
    if call.plan is not None:
        route = f"{call.plan.route}@{call.plan.version}"
        headers += [
            (b"x-headrace-route", header_value(route)),
            (b"x-headrace-cache", call.cache.encode()),
        ]
    for name, left in call.charge.allowances().items():
        headers += [
            (b"x-ratelimit-limit-%b" % name.encode(), b"%d" % left.limit),
            (b"x-ratelimit-remaining-%b" % name.encode(), b"%d" % left.remaining),
            (b"x-ratelimit-reset-%b" % name.encode(), b"%ds" % math.ceil(left.reset)),
        ]
    return headers


@lru_cache(1024)
def header_value(text: str) -> bytes:
    """`text` as a header's value; what cannot stand in one is percent-encoded."""
    return quote(text, safe=_PRINTABLE).encode("ascii")
