"""One client's connection: a request whose head is too slow or too long is dropped, and whoever
answers one can ask here whether the client is still there.

A client that sends a head byte by byte, or without end, would else hold its connection or fill
the memory as it likes; bodies have their own limits (`admission.read_body`), idle connections
uvicorn's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT = 15.0  # seconds
MAX_HEAD_BYTES = 1024 * 1024

_CONNECTION = "headrace.connection"  # in the scope of a request


class Connection(HttpToolsProtocol):
    """Uvicorn's HTTP protocol with bounds on request heads.

    `arrived` says that the last request is here whole. `on_loss` is called when the client hangs
    up: one call is answered at a time.
    """

    arrived = False
    on_loss: Callable[[], None] | None = None
    _head_bytes = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        """Whether the client leaves what was sent unread, so that the next write will wait."""
        return bool(self.flow.write_paused)

    @property
    def lost(self) -> bool:
        """Whether the client is gone."""
        return self.transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request's head."""
        super().connection_made(transport)
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
        self.scope[_CONNECTION] = self  # type: ignore[literal-required]
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


def connection_of(scope: Scope) -> Connection:
    """The connection that a request came by."""
    connection: Connection = scope[_CONNECTION]
    return connection
