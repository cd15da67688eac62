"""A whole gateway on a real socket: the wired application under uvicorn, on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import uvicorn

from headrace.app import GRACE, App, server_config
from headrace.config.load import Loaded, load, version_of
from headrace.config.schema import (
    Cache,
    Configuration,
    Log,
    Match,
    Model,
    Price,
    Route,
    Server,
    Timeouts,
    UpstreamProvider,
)
from headrace.gateway.services import HEARTBEAT
from headrace.observability.record import CallRecord
from tests.fakes.upstream import FakeUpstream

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
_Posting = contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]


@dataclass(frozen=True)
class Running:
    """A gateway that answers at `url`."""

    app: App
    server: uvicorn.Server
    url: str
    port: int
    http: aiohttp.ClientSession

    def post(self, body: object, path: str = CHAT, **headers: str) -> _Posting:
        """POST `body` as JSON; headers' names are given with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(self.url + path, json=body, headers=named)

    async def records(self) -> list[CallRecord]:
        """All calls on record, oldest first."""
        await asyncio.to_thread(self.app.recorder.flush)
        return (await asyncio.to_thread(self.app.recorder.store.calls))[::-1]

    async def idle(self) -> None:
        """Wait until no call runs; the record of each is written by then."""
        await self.app.services.admission.idle()


@contextlib.asynccontextmanager
async def running(
    configuration: Configuration | None,
    models: Mapping[str, Path] | None = None,
    heartbeat: float = HEARTBEAT,
    grace: float = GRACE,
    file: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Running]:
    """The gateway of `configuration`, or else of `file`, started and closed."""
    loaded = (
        load(file) if configuration is None else Loaded(configuration, version_of(configuration))
    )
    environ = {"TEST_KEY": "sk-test"}
    app = App.build(loaded, models or {}, environ=environ, clock=clock, heartbeat=heartbeat)
    if file is not None:
        app.watch(file, lambda: load(file), environ)
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as uvloop does by itself
    port = listener.getsockname()[1]
    await app.start()
    server = uvicorn.Server(server_config(app.asgi, "127.0.0.1", port, grace))
    app.stopping = lambda: server.should_exit
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            yield Running(app, server, f"http://127.0.0.1:{port}", port, http)
    finally:
        server.should_exit = True
        await serving
        await app.close()


def configured(
    directory: Path,
    *upstreams: FakeUpstream,
    timeouts: Timeouts | None = None,
    cache: Cache | None = None,
    server: Server | None = None,
) -> Configuration:
    """One provider and one model per upstream (`first`, `second` ...), and the route `smart`
    that tries them in order."""
    names = ("first", "second", "third")[: len(upstreams)]
    return Configuration(
        server=server or Server(),
        providers={
            f"up-{name}": UpstreamProvider(
                base_url=upstream.base_url, key="env:TEST_KEY", timeouts=timeouts or Timeouts()
            )
            for name, upstream in zip(names, upstreams, strict=True)
        },
        models={
            name: Model(
                source=f"real-{name}",
                provider=f"up-{name}",
                price=Price(input=1.0, output=10.0, cached_input=0.5),
            )
            for name in names
        },
        routes=(Route(name="smart", attempts=names, when=Match(model="smart")),),
        cache=cache or Cache(),
        log=Log(directory=str(directory)),
    )
