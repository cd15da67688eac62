"""An upstream that speaks OpenAI's dialect on a real socket, one script per request.

    async with FakeUpstream() as upstream:
        upstream.answer(chat("Hel", "lo"))
        ...  # a client that uses upstream.base_url

Scripts are used up in order; the last one answers every further request. What came in is in
`upstream.received`; each has `left`, which is set when the client closed before the answer's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self


class Cut:
    """A step: the connection breaks here."""


class Stall:
    """A step: nothing more comes until the client leaves."""


@dataclass(frozen=True)
class Gate:
    """A step: nothing more comes until `opened` is set; `reached` says that it is here."""

    opened: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)


Part = bytes | Cut | Stall | Gate

SSE = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Script:
    """One answer, byte for byte. Each piece of `parts` is written by itself.

    `head` are steps that come before the status line.
    """

    parts: Sequence[Part] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: SSE)
    head: Sequence[Part] = ()


@dataclass
class Received:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    raw: bytes
    connection: int  # counts the connections of this upstream from 0
    left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def body(self) -> dict[str, Any]:
        body = json.loads(self.raw)
        assert isinstance(body, dict)
        return body


def sse(value: object) -> bytes:
    """One event with `value` as JSON."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def chunk(
    delta: Mapping[str, object] | None = None,
    finish_reason: str | None = None,
    **fields: object,
) -> bytes:
    """One chat.completion.chunk."""
    choice = {"index": 0, "delta": dict(delta or {}), "finish_reason": finish_reason}
    return sse(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": "upstream-model",
            "choices": [choice],
            **fields,
        }
    )


def usage_chunk(usage: Mapping[str, object] = USAGE) -> bytes:
    """The last chunk of a stream with include_usage."""
    return sse({"object": "chat.completion.chunk", "choices": [], "usage": dict(usage)})


def chat(*texts: str, finish: str = "stop", usage: Mapping[str, object] | None = USAGE) -> Script:
    """A good streamed chat answer: role, one chunk per text, finish, usage, [DONE]."""
    parts = [chunk({"role": "assistant", "content": ""})]
    parts += [chunk({"content": text}) for text in texts]
    parts.append(chunk({}, finish))
    if usage is not None:
        parts.append(usage_chunk(usage))
    return Script([*parts, DONE])


def completions(*texts: str, finish: str = "stop") -> Script:
    """A good streamed answer of the completions endpoint."""
    parts = [sse({"choices": [{"index": 0, "text": text}]}) for text in texts]
    parts.append(sse({"choices": [{"index": 0, "text": "", "finish_reason": finish}]}))
    return Script([*parts, usage_chunk(), DONE])


def failing(
    status: int, message: str = "no", headers: Mapping[str, str] | None = None, **fields: object
) -> Script:
    """An error answer in OpenAI's shape."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": None, **fields}}
    return Script([json.dumps(body).encode()], status, {**JSON, **(headers or {})})


def split(script: Script, size: int) -> Script:
    """The same answer in pieces of `size` bytes, one HTTP chunk each."""
    whole = b"".join(part for part in script.parts if isinstance(part, bytes))
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    return Script(pieces, script.status, script.headers)


class FakeUpstream:
    """The server, on a free port of the loopback interface."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self._scripts: list[Script] = [chat("Hello", " world")]
        self._at: dict[str, Script] = {}
        self._used = 0
        self._arrived = asyncio.Condition()
        self._connections: set[asyncio.Task[None]] = set()
        self._opened = 0
        self._server: asyncio.Server | None = None

    @property
    def base_url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/v1"

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def answer(self, *scripts: Script) -> None:
        """Answer the coming requests by `scripts`, in order; the last one stays."""
        self._scripts, self._used = list(scripts), 0

    def answer_at(self, path: str, script: Script) -> None:
        """Answer every request of this path by `script`."""
        self._at[path] = script

    async def arrived(self, count: int = 1) -> Received:
        """Wait until `count` requests came in; the latest of them."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.received) >= count)
        return self.received[count - 1]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        number = self._opened
        self._opened += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._one(reader, writer, number):
                    pass
        except asyncio.CancelledError:
            pass  # the server closes: this connection ends without a word
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> bool:
        """Serve one request; whether the connection can serve another."""
        request = await self._read(reader, number)
        script = self._at.get(request.path)
        if script is None:
            script = self._scripts[min(self._used, len(self._scripts) - 1)]
            self._used += 1
        async with self._arrived:
            self.received.append(request)
            self._arrived.notify_all()
        answering = asyncio.ensure_future(self._play(script, writer))
        # A client sends nothing while it waits, so bytes or their end here mean that it left.
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                request.left.set()
                return False
            return await answering
        except ConnectionError:
            request.left.set()  # seen by a write
            return False
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.wait([answering, leaving])
            for task in (answering, leaving):
                if not task.cancelled():
                    task.exception()  # a broken pipe: the client left while bytes were written

    async def _play(self, script: Script, writer: asyncio.StreamWriter) -> bool:
        for part in script.head:
            if not await self._step(part, writer, framed=False):
                return False
        lines = [f"HTTP/1.1 {script.status} Scripted", "transfer-encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in script.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        await writer.drain()
        for part in script.parts:
            if not await self._step(part, writer, framed=True):
                return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _step(self, part: Part, writer: asyncio.StreamWriter, framed: bool) -> bool:
        """One part; False where the connection is to break."""
        match part:
            case bytes():
                if part:
                    writer.write(b"%x\r\n%b\r\n" % (len(part), part) if framed else part)
                    await writer.drain()
            case Gate():
                part.reached.set()
                await part.opened.wait()
            case Stall():
                await asyncio.Event().wait()
            case Cut():
                return False
        return True

    async def _read(self, reader: asyncio.StreamReader, number: int) -> Received:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        return Received(method, path, headers, raw, number)
