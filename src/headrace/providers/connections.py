"""HTTP/1.1 to one server: connections that are kept, answers read as they come.

The parser is httptools', as on the side of our callers; names, TLS and sockets are the event
loop's. What is between is little on purpose: a client for everything spends more on one call than
all the rest of the gateway together.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from urllib.parse import urlsplit

import httptools

KEPT = 15.0  # seconds that a connection is kept which nobody uses; most servers keep it longer
MAX_HEAD_BYTES = 64 * 1024
MAX_WAITING_BYTES = 256 * 1024  # of an answer that are not read yet; then the server has to wait


class ConnectionFault(OSError):
    """The connection ended too early, or what came is not HTTP."""


class ConnectTimeout(TimeoutError):
    """No connection within the time-out."""


class Connections:
    """The connections to the server at `address`, of the form `scheme://host[:port][/...]`."""

    def __init__(self, address: str, connect: float) -> None:
        parts = urlsplit(address)
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (80 if self._tls is None else 443)
        self._connect = connect
        self._every: set[Connection] = set()
        self._kept: deque[Connection] = deque()  # nobody uses them, the last used last
        self._sweeping: asyncio.TimerHandle | None = None

    async def take(self) -> Connection:
        """A connection to ask by; `give_back` it. Raises ConnectTimeout and OSError."""
        while self._kept:
            connection = self._kept.pop()
            if connection.reusable:
                return connection
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect):
                _, made = await loop.create_connection(
                    lambda: Connection(self._every), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            raise ConnectTimeout from None
        return made

    def give_back(self, connection: Connection) -> None:
        """Keep the connection for the next call, where its answer was read to the end."""
        if not (connection.at_end and connection.reusable):
            connection.abort()
            return
        loop = asyncio.get_running_loop()
        connection.left_at = loop.time()
        self._kept.append(connection)
        if self._sweeping is None:
            self._sweeping = loop.call_later(KEPT, self._sweep)

    def close(self) -> None:
        """End every connection; who reads from one is told ConnectionFault."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in list(self._every):
            connection.abort()

    def _sweep(self) -> None:
        self._sweeping = None
        loop = asyncio.get_running_loop()
        while self._kept and self._kept[0].left_at + KEPT <= loop.time():
            self._kept.popleft().abort()
        if self._kept:
            self._sweeping = loop.call_at(self._kept[0].left_at + KEPT, self._sweep)


class Connection(asyncio.Protocol):
    """One connection, and the answer that is read from it: `status` and `headers` (names in lower
    case; of one that came twice the first), then its pieces up to `at_end`."""

    def __init__(self, every: set[Connection]) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.at_end = True
        self.left_at = 0.0
        self._every = every
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._begun = False  # the head is read
        self._keeps = True
        self._head_bytes = 0
        self._pieces: list[bytes] = []
        self._waiting_bytes = 0
        self._paused = False
        self._full = False  # the server leaves what was sent unread
        self._fault: ConnectionFault | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def content_type(self) -> str:
        """The media type alone, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another call after this one."""
        transport = self._transport
        return (
            self._keeps
            and self._fault is None
            and transport is not None
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        )

    def ask(self, head: bytes, body: bytes) -> None:
        """Send a request; then `open`."""
        self.status, self.headers, self.at_end, self._begun = 0, {}, False, False
        self._head_bytes = 0
        if self._transport is None:
            raise ConnectionFault("The connection is closed.")
        self._transport.writelines((head, body))

    async def send(self, piece: bytes, deadline: float) -> bool:
        """Send more of a request whose head announced it, once there is room; whether the server
        still wants more, which it does not once it has answered. Raises as `open` does."""
        while self._full and not self._begun:
            await self._wait(deadline)
        if self._begun or self._transport is None:
            self._keeps = False
            return False
        self._transport.write(piece)
        return True

    async def open(self, deadline: float) -> None:
        """Wait for the answer's head. Raises ConnectionFault, and TimeoutError at `deadline`, in
        seconds of the loop's clock."""
        while not self._begun:
            await self._wait(deadline)

    async def piece(self, deadline: float) -> bytes:
        """What has come of the answer since; empty at its end. Raises as `open` does."""
        while not self._pieces:
            if self.at_end:
                return b""
            await self._wait(deadline)
        if self._loop.time() >= deadline:  # also of a server that never falls silent
            raise TimeoutError
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._waiting_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return piece

    def abort(self) -> None:
        """End the connection at once."""
        self._fail("The connection was closed.")

    async def _wait(self, deadline: float) -> None:
        if self._fault is not None:
            raise self._fault
        self._deadline = deadline
        if self._timer is None or deadline < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._tick)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _tick(self) -> None:
        """The timer's time has come; the deadline it was set for may have moved since, which costs
        less than to set the timer anew for every wait."""
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() >= self._deadline:
            self._waiter.set_exception(TimeoutError())
        else:
            self._timer = self._loop.call_at(self._deadline, self._tick)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            if self._fault is None:
                self._waiter.set_result(None)
            else:
                self._waiter.set_exception(self._fault)

    def _fail(self, why: str) -> None:
        if self._fault is None:
            self._fault = ConnectionFault(why)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection stands."""
        self._transport = transport
        self._every.add(self)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self.at_end:  # nobody asked
            self._fail("The server spoke without being asked.")
            return
        if not self._begun:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("What the server sent is not HTTP.")
            return
        if not self._begun and self._head_bytes > MAX_HEAD_BYTES:
            self._fail("The head of the server's answer is too long.")
        elif self._begun:
            self._wake()

    def pause_writing(self) -> None:
        """There is no room to send."""
        self._full = True

    def resume_writing(self) -> None:
        """There is room again."""
        self._full = False
        if not self._begun:
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """The other side is gone; an answer that says no length ends with it."""
        self._every.discard(self)
        self._transport = None
        lengthless = (
            "content-length" not in self.headers and "transfer-encoding" not in self.headers
        )
        if error is None and self._begun and lengthless and self._fault is None:
            self.at_end = True
            self._keeps = False
            self._wake()
        else:
            self._fail("The server closed the connection.")

    # What the parser calls.

    def on_message_begin(self) -> None:
        """An answer begins. Raises ValueError where nobody asked for another one."""
        if self.at_end:
            raise ValueError("a second answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self.headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        """The head is here."""
        self.status = self._parser.get_status_code()
        self._keeps = self._parser.should_keep_alive()
        self._begun = self.status >= 200  # before it there may be others, which say nothing

    def on_body(self, piece: bytes) -> None:
        """A piece of the body."""
        self._pieces.append(piece)
        self._waiting_bytes += len(piece)
        if self._waiting_bytes > MAX_WAITING_BYTES and not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The answer ended, or what came before it."""
        if self._begun:
            self.at_end = True
        else:
            self.headers = {}
