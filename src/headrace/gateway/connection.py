"""One client's connection: a request whose head is too slow or too long is dropped, and whoever
answers one can ask here whether the client is still there.

A client that sends a head byte by byte, or without end, would else hold its connection or fill
the memory as it likes; bodies have their own limits (`admission.read_body`), idle connections
uvicorn's.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Protocol, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD_TIMEOUT = 15.0  # seconds
MAX_HEAD_BYTES = 1024 * 1024
MAX_UNSENT_BYTES = 128 * 1024  # that the kernel takes for one who does not read; else it is 4 MiB

CLIENT = "headrace.client"  # in the scope of a request

Headers = list[tuple[bytes, bytes]]


class Client(Protocol):
    """Who sent a request and reads its answer. `arrived`: the request is here whole. `on_loss` is
    called when the client hangs up; one call is answered at a time."""

    arrived: bool
    on_loss: Callable[[], None] | None

    @property
    def full(self) -> bool:
        """Whether the client leaves what was sent unread, so that the next write will wait."""
        ...

    @property
    def lost(self) -> bool:
        """Whether the client is gone."""
        ...

    def hold(self) -> None:
        """Let the next write wait for the one after it, so that both go out in one system call."""
        ...

    def answer(self, status: int, headers: Headers, body: bytes) -> bool:
        """Send a whole answer at once; False where it has to go by ASGI messages."""
        ...

    def drop(self) -> None:
        """End the connection in the middle of an answer, so that it is seen to be cut."""
        ...


class Connection(HttpToolsProtocol):
    """Uvicorn's HTTP protocol with bounds on request heads: the `Client` at the other end."""

    arrived = False
    on_loss: Callable[[], None] | None = None
    _head_bytes = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        """Whether the client leaves what was sent unread, so that the next write will wait."""
        return bool(self.flow.write_paused)

    def hold(self) -> None:
        """Let the next write wait for the one after it, so that both go out in one system call."""
        self._corked.holding = True

    def answer(self, status: int, headers: Headers, body: bytes) -> bool:
        """Send a whole answer at once; False where it has to go by ASGI messages.

        What uvicorn does for one in two messages, with a third of their cost. Raises RuntimeError
        where a header is not one line.
        """
        cycle = self.cycle
        if self.pipeline or self.flow.write_paused or cycle.response_started:
            return False  # a cycle that waits is not the one that is answered
        if cycle.disconnected:
            return True
        lines = [b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)]
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines):
            raise RuntimeError("a header is over several lines")
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        self._corked.write(b"%b%b\r\n%b" % (STATUS_LINE[status], head, body))
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._corked.close()
        cycle.on_response()
        return True

    def drop(self) -> None:
        """End the connection in the middle of an answer, so that it is seen to be cut."""
        self.cycle.disconnected = True  # nothing more is expected of the answer
        self.transport.close()

    @property
    def lost(self) -> bool:
        """Whether the client is gone."""
        return self.transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request's head."""
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES
        )
        self._corked = _Corked(transport)
        self.transport = cast(asyncio.Transport, self._corked)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._drop()
            else:
                self._await_head()

    def on_message_begin(self) -> None:
        """A request begins: wait for the rest of its head, where it does not come at once."""
        super().on_message_begin()
        self.scope[CLIENT] = self  # type: ignore[literal-required]
        self.arrived = False
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """The head is here."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is here."""
        super().on_message_complete()
        self.arrived = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self._stop_waiting()
        super().connection_lost(exc)
        if self.on_loss is not None:
            self.on_loss()

    def _await_head(self) -> None:
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self._drop)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _drop(self) -> None:
        self._stop_waiting()
        self.transport.close()


class _Corked:
    """A transport with a cork."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.holding = False
        self._held = b""
        self._transport = transport
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send, or hold back."""
        if self.holding:
            self.holding = False
            self._held += data
            return
        if self._held:
            data, self._held = self._held + data, b""
        self._transport.write(data)

    def close(self) -> None:
        """Send what was held back, and close."""
        self.holding = False
        if self._held:
            self.write(b"")
        self._transport.close()


def client_of(scope: Scope) -> Client:
    """Who sent a request."""
    client: Client = scope[CLIENT]
    return client
