"""The HTTP side of every remote provider: one pool of connections, bounds on all that comes.

Four time-outs are kept apart: `pool` (waiting for a free connection), `connect` (name, TCP, TLS),
`first_token` (from the request sent to the first piece of the answer; `whole` takes its place where
the answer is not streamed) and `between_tokens`; time the caller takes to read counts for none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from headrace import __version__
from headrace.config.schema import Timeouts, UpstreamProvider
from headrace.protocol.errors import HeadraceError, UpstreamError, UpstreamTimeout
from headrace.protocol.sse import CONTENT_TYPE
from headrace.providers.connections import Connection, Connections, ConnectTimeout
from headrace.providers.refusals import error_for, read_refusal, retry_after

MAX_ANSWER_BYTES = 64 * 1024 * 1024  # as framed by the upstream
MAX_ERROR_BYTES = 64 * 1024
ERROR_WAIT = 2.0  # seconds an upstream has to say what is wrong after the status
DRAIN = 0.02  # seconds an upstream has to end its answer after saying [DONE]


UPLOAD_PIECE = 256 * 1024  # bytes of a file that are read at once


@dataclass(frozen=True, slots=True)
class Upload:
    """A body of `size` bytes, some of which stand in files."""

    parts: tuple[bytes | Path, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """One HTTP request: a path below the provider's address, a body, further headers. The body is
    `upload` where that is given, and read while it is sent."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    method: Literal["POST", "GET"] = "POST"
    upload: Upload | None = None
    content_type: str = "application/json"


class Upstream:
    """A pool of connections to the server at `address`.

    `headers` go with every request; `secrets` are taken out of what the server quotes. `clock`
    gives Unix seconds, for a Retry-After that is a date.
    """

    def __init__(
        self,
        name: str,
        address: str,
        settings: UpstreamProvider,
        headers: Mapping[str, str],
        secrets: Sequence[str],
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.address = address.rstrip("/")
        self._settings = settings
        self._headers = headers
        self._secrets = secrets
        self._clock = clock
        self._slots = asyncio.Semaphore(settings.max_connections)
        self._head = _head(self.address, headers)
        self._path = urlsplit(self.address).path.encode("ascii")
        self._connections: Connections | None = None

    @property
    def open(self) -> bool:
        """Whether the pool is open."""
        return self._connections is not None

    async def start(self) -> None:
        """Open the pool; no connection is made yet."""
        self._connections = Connections(self.address, self._settings.timeouts.connect)

    async def close(self) -> None:
        """Close every connection; running generations fail with UpstreamError."""
        connections, self._connections = self._connections, None
        if connections is not None:
            connections.close()

    def patience(self, *, whole: bool = False) -> Patience:
        """The time-outs of one call, whose answer may come whole."""
        return Patience(self.name, self._settings.timeouts, whole=whole)

    def answer(self, exchange: Exchange, patience: Patience) -> Answer:
        """The server's good answer to `exchange`: a context, and in it a connection for as long as
        it is read.

        Raises RefusedByUpstream, RateLimited, Overloaded, UpstreamError and UpstreamTimeout.
        """
        return Answer(self, exchange, patience)

    async def _opened(
        self, exchange: Exchange, patience: Patience
    ) -> tuple[Connections, Connection]:
        """A connection whose answer is good; `_left` when it is read."""
        await self._take_slot()
        connections = self._connections
        connection: Connection | None = None
        try:
            if connections is None:
                raise UpstreamError(f"Provider '{self.name}' is not running.")
            connection = await self._connected(connections)
            await self._ask(connection, exchange, patience)
            await self._check(connection, patience)
        except BaseException as error:
            self._left(connections, connection, error)
            raise
        return connections, connection

    def _left(
        self,
        connections: Connections | None,
        connection: Connection | None,
        error: BaseException | None,
    ) -> None:
        if connection is not None and connections is not None:
            connections.give_back(connection)
        self._slots.release()
        if isinstance(error, HeadraceError):
            self._hide_secrets(error)

    def _hide_secrets(self, error: HeadraceError) -> None:
        """Take the secrets out of what an upstream quotes."""
        for secret in self._secrets:
            if secret in error.message:
                error.message = error.message.replace(secret, "[key]")
                error.args = (error.message,)

    async def pieces(
        self, connection: Connection, patience: Patience
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of an answer as they come, `MAX_ANSWER_BYTES` at most.

        A connection that fails once `patience` is satisfied ends them.
        """
        left = MAX_ANSWER_BYTES
        while True:
            try:
                piece = await self._read(connection, patience)
            except (UpstreamError, UpstreamTimeout):
                if patience.satisfied:
                    return
                raise
            if not piece:
                return
            left -= len(piece)
            if left < 0:
                raise self._too_large()
            yield piece

    async def body(self, connection: Connection, patience: Patience) -> bytes:
        """The whole answer."""
        return await self._body(connection, patience, MAX_ANSWER_BYTES)

    async def _take_slot(self) -> None:
        """Wait for one of the pool's connections."""
        if not self._slots.locked():
            await self._slots.acquire()
            return
        seconds = self._settings.timeouts.pool
        try:
            async with asyncio.timeout(seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise UpstreamTimeout(
                f"No connection to provider '{self.name}' became free within {seconds:g} s (pool)."
            ) from None

    async def _check(self, connection: Connection, patience: Patience) -> None:
        """Raise what an answer says that is not good."""
        if connection.status != 200:
            raise await self._refused(connection, patience)
        if connection.headers.get("content-encoding", "identity") != "identity":
            raise UpstreamError(
                f"Provider '{self.name}' compressed its answer although asked not to."
            )

    async def _connected(self, connections: Connections) -> Connection:
        try:
            return await connections.take()
        except ConnectTimeout:
            seconds = self._settings.timeouts.connect
            raise UpstreamTimeout(
                f"Provider '{self.name}' could not be reached within {seconds:g} s (connect)."
            ) from None
        except OSError as error:
            raise self._broken(error) from None

    async def _ask(self, connection: Connection, exchange: Exchange, patience: Patience) -> None:
        """Send the request, and wait for the answer's head."""
        try:
            connection.ask(self._head_of(exchange), exchange.body)
            if exchange.upload is not None:
                await self._send(connection, exchange.upload)
            await connection.open(patience.sent())
        except TimeoutError:
            raise patience.error() from None
        except OSError as error:
            raise self._broken(error) from None

    async def _send(self, connection: Connection, upload: Upload) -> None:
        """Send a body as fast as the server takes it, a piece in memory at a time."""
        seconds = self._settings.timeouts.between_tokens
        loop = asyncio.get_running_loop()
        try:
            async with contextlib.aclosing(_pieces_of(upload)) as pieces:
                async for piece in pieces:
                    if not await connection.send(piece, loop.time() + seconds):
                        return
        except TimeoutError:
            raise UpstreamTimeout(
                f"Provider '{self.name}' took no more of the request for {seconds:g} s "
                "(between_tokens)."
            ) from None

    def _head_of(self, exchange: Exchange) -> bytes:
        """The head of a request. Raises UpstreamError where it would not be one line each."""
        fields = {"Content-Type": exchange.content_type, **exchange.headers}
        further = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        path = exchange.path.encode("ascii")
        if b"\r" in path or b"\n" in path or b" " in path or further.count("\n") != len(fields):
            raise UpstreamError(f"The request to provider '{self.name}' cannot be written.")
        return b"%b %b%b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n" % (
            exchange.method.encode(),
            self._path,
            path,
            self._head,
            further.encode("latin-1"),
            len(exchange.body) if exchange.upload is None else exchange.upload.size,
        )

    async def _read(self, connection: Connection, patience: Patience) -> bytes:
        """The next bytes of the answer; empty at its end."""
        try:
            return await connection.piece(patience.deadline())
        except TimeoutError:
            raise patience.error() from None
        except OSError as error:
            raise self._broken(error) from None

    async def _body(self, connection: Connection, patience: Patience, limit: int) -> bytes:
        """The whole body. Raises UpstreamError if it is over `limit` bytes."""
        body = bytearray()
        while piece := await self._read(connection, patience):
            body += piece
            if len(body) > limit:
                raise self._too_large()
        return bytes(body)

    async def _refused(self, connection: Connection, patience: Patience) -> HeadraceError:
        try:
            async with asyncio.timeout(ERROR_WAIT):
                body = await self._body(connection, patience, MAX_ERROR_BYTES)
        except (TimeoutError, UpstreamError, UpstreamTimeout):
            body = b""  # the status says enough
        wait = retry_after(connection.headers, self._clock)
        return error_for(self.name, connection.status, read_refusal(body), wait)

    def _broken(self, error: Exception) -> UpstreamError:
        """A connection fault. Only its kind is said: its text may hold the request's headers."""
        return UpstreamError(
            f"The connection to provider '{self.name}' failed ({type(error).__name__})."
        )

    def _too_large(self) -> UpstreamError:
        return UpstreamError(f"Provider '{self.name}' sent over {MAX_ANSWER_BYTES} bytes.")


class Answer:
    """A context in which one answer of `upstream` is read."""

    __slots__ = ("_connection", "_connections", "_exchange", "_patience", "_upstream")

    def __init__(self, upstream: Upstream, exchange: Exchange, patience: Patience) -> None:
        self._upstream = upstream
        self._exchange = exchange
        self._patience = patience

    async def __aenter__(self) -> Connection:
        opened = await self._upstream._opened(self._exchange, self._patience)
        self._connections, self._connection = opened
        return self._connection

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._upstream._left(self._connections, self._connection, error)


class Patience:
    """How long one call still waits, and for what.

    `satisfied` says that all that matters has come: what breaks then does not matter.
    """

    def __init__(self, provider: str, timeouts: Timeouts, *, whole: bool = False) -> None:
        self.satisfied = False
        self._whole = whole
        self._provider = provider
        self._timeouts = timeouts
        self._begun = False
        self._deadline: float | None = None  # of the wait under way, on the loop's clock

    def sent(self) -> float:
        """The request is on its way: the wait for the first token begins. When it ends."""
        self._deadline = asyncio.get_running_loop().time() + self._first
        return self._deadline

    @property
    def _first(self) -> float:
        return self._timeouts.whole if self._whole else self._timeouts.first_token

    def progress(self) -> None:
        """A piece of the answer came: the next wait begins when the caller wants more."""
        self._begun = True
        self._deadline = None

    def deadline(self) -> float:
        """When the wait for more of the answer ends, on the loop's clock."""
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._timeouts.between_tokens
        return self._deadline

    def error(self) -> UpstreamTimeout:
        """What to say when the wait was too long."""
        if self._begun:
            said = f"was silent for {self._timeouts.between_tokens:g} s (between_tokens)"
        elif self._whole:
            said = f"sent no answer within {self._first:g} s (whole)"
        else:
            said = f"sent no token within {self._first:g} s (first_token)"
        return UpstreamTimeout(f"Provider '{self._provider}' {said}.")


async def _pieces_of(upload: Upload) -> AsyncGenerator[bytes, None]:
    for part in upload.parts:
        if isinstance(part, bytes):
            yield part
            continue
        file = await asyncio.to_thread(part.open, "rb")
        try:
            while piece := await asyncio.to_thread(file.read, UPLOAD_PIECE):
                yield piece
        finally:
            file.close()


def _head(address: str, headers: Mapping[str, str]) -> bytes:
    """The headers that go with every request to `address`. Raises ValueError where one of them
    would not be one line."""
    fields = {
        "Host": urlsplit(address).netloc.rpartition("@")[2],
        "Accept": f"{CONTENT_TYPE}, application/json, */*;q=0.5",
        "Accept-Encoding": "identity",  # a stream that is compressed cannot be bounded
        "User-Agent": f"headrace/{__version__}",
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    if head.count("\n") != len(fields):
        raise ValueError("a header is over several lines")
    return head.encode("latin-1")


async def drain(connection: Connection) -> None:
    """Read the answer's end, so that its connection can serve the next call."""
    if connection.at_end:
        return
    until = asyncio.get_running_loop().time() + DRAIN
    with contextlib.suppress(OSError):  # TimeoutError is one
        while await connection.piece(until):
            pass
