"""The one place that wires all rooms from a configuration, and serves them."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from headrace import console
from headrace.cache.exact import ExactCache
from headrace.config.history import keep
from headrace.config.load import Loaded
from headrace.config.schema import LOCAL, Configuration, Logging
from headrace.config.secrets import resolve, variables_of
from headrace.gateway.access import AccessLog
from headrace.gateway.adapters import Adapters
from headrace.gateway.admission import Admission
from headrace.gateway.app import ANSWERING, build, generations
from headrace.gateway.board import Board
from headrace.gateway.connection import Connection
from headrace.gateway.engine_metrics import watch_engines, watch_residency
from headrace.gateway.keyring import Keyring
from headrace.gateway.offline.endpoints import Offline
from headrace.gateway.offline.runner import Runner
from headrace.gateway.offline.store import FOLDER, OfflineStore
from headrace.gateway.probes import Probes
from headrace.gateway.reload import Reloader
from headrace.gateway.residents import Residents
from headrace.gateway.services import HEARTBEAT, Deployment, Services
from headrace.observability.conversations import Conversations
from headrace.observability.lines import LineHandler, Lines, call_line
from headrace.observability.metrics import Metrics
from headrace.observability.qualities import Qualities
from headrace.observability.record import CallRecord
from headrace.observability.recorder import Recorder
from headrace.observability.snapshots import Snapshots
from headrace.providers.base import Provider
from headrace.providers.local import LocalProvider
from headrace.providers.local_outlook import outlook
from headrace.providers.remotes import remote_provider
from headrace.registry.home import home
from headrace.registry.pull import pull
from headrace.router.decide import Router
from headrace.router.health import Health
from headrace.router.latency import Speeds
from headrace.router.plan import Speed

TELL = 0.25  # seconds between two times that a process says what it has counted
GRACE = 10.0  # seconds that running calls are given when the server stops
COLLECT_AFTER = (10_000, 20, 20)  # new objects, and collections of each younger generation
SWITCH = 0.0005  # seconds
KEEP_ALIVE = 75  # seconds; longer than clients keep an idle connection


@dataclass(frozen=True, slots=True)
class Shared:
    """What the processes of one server share: made before they are forked, joined in each."""

    board: Board
    snapshots: Snapshots

    @classmethod
    def between(cls, workers: int) -> Shared:
        """For so many processes."""
        return cls(Board(workers), Snapshots(workers))

    def join(self, number: int) -> None:
        """Be process `number` of them, from 0."""
        self.board.join(number)
        self.snapshots.me = number


class App:
    """The platform: `asgi` answers requests between `start` and `close`."""

    def __init__(
        self,
        services: Services,
        recorder: Recorder,
        qualities: Qualities,
        lines: Lines | None = None,
    ) -> None:
        self.services = services
        self.lines = lines
        self._qualities = qualities
        self._handler: LineHandler | None = None
        self._telling: asyncio.Task[None] | None = None
        self.recorder = recorder
        self.reloader: Reloader | None = None
        self.stopping: Callable[[], bool] = lambda: False  # whether the server winds down
        server = services.configuration.server
        page = console.routes(recorder.store, server.host, lambda: self.stopping())
        local = services.providers.get(LOCAL)
        directory = data_directory(services.configuration)
        admin: list[Route] = []
        self._carry: Callable[[Configuration], Configuration] = lambda filed: filed
        if isinstance(local, LocalProvider):
            adapters = Adapters(services, local, pull, directory)
            self._carry = adapters.carried
            admin = adapters.routes() + Residents(services, local).routes()
        answers = generations(services)
        stored = OfflineStore(recorder.store.engine, directory, lambda: services.wall())
        self.runner = Runner(services, answers, stored)
        offline = Offline(services, stored, self.runner).routes()
        self.probes = Probes(services)
        routes = [*offline, *admin, *self.probes.routes(), *page]
        self.asgi: ASGIApp = build(services, answers, routes, self._lifespan)
        if lines is not None and services.configuration.logging.requests:
            self.asgi = AccessLog(self.asgi, lines, ANSWERING, services.clock)

    @classmethod
    def build(
        cls,
        loaded: Loaded,
        models: Mapping[str, Path],
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        heartbeat: float = HEARTBEAT,
        shared: Shared | None = None,
    ) -> App:
        """Wire everything. `models` maps the references of local models to their files; `shared`
        is what other processes of the same server have too.

        Raises SecretError where a provider's key cannot be had, OSError or SQLAlchemyError where
        the call log cannot be opened.
        """
        configuration = loaded.configuration
        providers = _providers(configuration, models, environ)
        admin_key = configuration.server.admin_key
        directory = data_directory(configuration)
        recorder = Recorder.open(directory)
        keep(directory, loaded, time.time())
        qualities = Qualities(directory)
        lines = None
        if configuration.logging != Logging():
            always = None if shared is None else {"worker": shared.board.me}
            lines = Lines(lambda line: sys.stderr.write(line), time.time, always)
        board = Board() if shared is None else shared.board
        places = board.row("calls that run").places
        admission = Admission(configuration.server.max_concurrent_requests, places)
        metrics = Metrics(None if shared is None else shared.snapshots)
        metrics.watch_lost(lambda: recorder.lost)
        metrics.gauge("headrace_calls_running", "Calls that run now.", lambda: admission.running)
        if isinstance(local := providers.get(LOCAL), LocalProvider):
            watch_engines(metrics, local.engines, configuration)
            watch_residency(metrics, local.residency, configuration)
        cache = configuration.cache
        services = Services(
            now=Deployment.of(loaded, providers),
            router=Router(Health(clock), _speeds_of(providers), lambda: qualities.values),
            record=_recording(recorder, lines if configuration.logging.requests else None),
            recording=lambda: not recorder.losing,
            metrics=metrics,
            cache=ExactCache(cache.ttl, cache.max_bytes, clock) if cache.enabled else None,
            admission=admission,
            keyring=Keyring(directory, configuration, clock, time.time, board),
            uploads=directory / FOLDER,
            admin_key=None if admin_key is None else resolve(admin_key, environ),
            conversations=Conversations(recorder.store.engine, time.time)
            if configuration.log.content
            else None,
            clock=clock,
            heartbeat=heartbeat,
        )
        return cls(services, recorder, qualities, lines)

    def watch(
        self, path: Path, read: Callable[[], Loaded], environ: Mapping[str, str] = os.environ
    ) -> None:
        """Put changes of the configuration's file in force, from `start` to `close`.

        `read` loads it; it raises ConfigurationError where it is not in order.
        """

        def read_all() -> Loaded:
            self._qualities.refresh()
            return read()

        self.reloader = Reloader(
            self.services,
            path,
            read_all,
            lambda configuration: _remote(configuration, environ),
            self._carry,
            data_directory(self.services.configuration),
        )

    async def start(self) -> None:
        """Start the providers. Raises what the first that cannot start raises; close it then."""
        if self.lines is not None and self.services.configuration.logging.format == "json":
            self._handler = LineHandler(self.lines)
            logging.getLogger().addHandler(self._handler)
        try:
            async with asyncio.TaskGroup() as group:
                for provider in self.services.providers.values():
                    group.create_task(provider.start())
            self.services.keyring.start()
            self._telling = asyncio.create_task(self._tell())
            self.runner.start()
            self.probes.start()
            if self.reloader is not None:
                self.reloader.start()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def close(self) -> None:
        """Let running calls say their end, then release everything; what was recorded is kept."""
        await asyncio.gather(self.runner.close(), self.probes.close())
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self.services.admission.idle()
        if self._telling is not None:
            self._telling.cancel()
        self.services.metrics.say()
        if self.reloader is not None:
            await self.reloader.close()
        providers = self.services.providers.values()
        await asyncio.gather(*(provider.close() for provider in providers), return_exceptions=True)
        await self.services.keyring.close()
        await asyncio.to_thread(self.recorder.close)
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
        if self.lines is not None:
            await asyncio.to_thread(self.lines.close)

    async def _tell(self) -> None:
        while self.services.metrics.shared:
            self.services.metrics.say()
            await asyncio.sleep(TELL)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        try:
            await self.start()
            yield
        finally:
            await self.close()


def serve(
    app: App,
    listener: socket.socket,
    ready: Callable[[], None],
    line: socket.socket | None = None,
) -> None:
    """Serve on a bound `listener` until SIGINT or SIGTERM, or where there is a `line` until that
    says something or ends; blocks. Raises what `App.start` raises.

    `ready` is called once, when calls can come. When told to stop, no call is taken any more and
    running ones get `GRACE` seconds; those that are not done by then end with an error event. A
    second signal stops at once.
    """
    host, port = listener.getsockname()[:2]
    server = _Server(server_config(app.asgi, host, port), ready)
    app.stopping = lambda: server.should_exit

    async def run() -> None:
        # Signals are taken here, not by uvicorn: it would send them to us again before `close`.
        loop, main = asyncio.get_running_loop(), asyncio.current_task()

        def stop() -> None:
            server.force_exit = server.should_exit
            server.should_exit = True
            if not server.started and main is not None:
                main.cancel()  # still loading

        def hear(line: socket.socket) -> None:
            said = line.recv(16)
            for _ in said:
                stop()
            if not said:
                loop.remove_reader(line)
                if not server.should_exit:
                    stop()

        if line is not None:
            line.setblocking(False)
            loop.add_reader(line, hear, line)
        else:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop)
        try:
            await app.start()  # here and not by the lifespan, so that a failure reaches the caller
            _settle()
            await server.serve(sockets=[listener])
        finally:
            for call in server.server_state.tasks:
                call.cancel()  # told to stop at once: those that run say their end now
            await app.close()

    with (
        suppress(asyncio.CancelledError),
        asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner,
    ):
        runner.run(run())


def _settle() -> None:
    """Keep what was loaded by now, which stays, where the garbage collector does not look: else it
    goes through all of it again and again while calls wait. And let it look less often: what a
    call makes is nearly all gone without it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    # The threads that move records and read databases give the event loop its turn this soon.
    sys.setswitchinterval(SWITCH)
    # asyncio keeps a list of every generator, to close those that nobody does; here all are closed
    # by who began them, and a call has several.
    sys.set_asyncgen_hooks(firstiter=None)


class _Server(uvicorn.Server):
    """uvicorn, which says when it listens and leaves the signals to `serve`."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then tell."""
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def server_config(asgi: ASGIApp, host: str, port: int, grace: float = GRACE) -> uvicorn.Config:
    """How uvicorn runs the gateway: uvloop, httptools, no log line per call.

    `grace` is how many seconds running calls are given when it stops, rounded up.
    """
    return uvicorn.Config(
        asgi,
        host=host,
        port=port,
        loop="uvloop",
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who asks through a proxy is not trusted as who is here
        backlog=2048,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(grace),
    )


def data_directory(configuration: Configuration) -> Path:
    """Where calls and keys are kept."""
    directory = configuration.log.directory
    return home() if directory is None else Path(directory).expanduser()


def _recording(recorder: Recorder, lines: Lines | None) -> Callable[[CallRecord], None]:
    """What takes the record of each call."""
    if lines is None:
        return recorder.record

    def record(call: CallRecord) -> None:
        recorder.record(call)
        lines.say(call_line(call))

    return record


def _providers(
    configuration: Configuration, models: Mapping[str, Path], environ: Mapping[str, str]
) -> dict[str, Provider]:
    providers = _remote(configuration, environ)
    local = [model for model in configuration.models.values() if model.provider == LOCAL]
    if local:
        adapters: dict[str, dict[str, Path]] = {}
        for model in local:
            if model.adapter is not None:
                adapters.setdefault(model.source, {})[model.adapter] = models[model.adapter]
        bases = {model.source: models[model.source] for model in local}
        draft = configuration.engine.draft
        providers[LOCAL] = LocalProvider(
            bases,
            configuration.engine,
            adapters,
            None if draft is None else models[draft],
            variables_of(configuration),
        )
    return providers


def _remote(configuration: Configuration, environ: Mapping[str, str]) -> dict[str, Provider]:
    """The remote providers, not started. Raises SecretError."""
    return {
        name: remote_provider(name, settings, environ)
        for name, settings in configuration.providers.items()
    }


def _speeds_of(providers: Mapping[str, Provider]) -> Speeds:
    """What is learned of all providers; the local engines say themselves how busy they are."""
    local = providers.get(LOCAL)
    if not isinstance(local, LocalProvider):
        return Speeds()

    def load(provider: str, model: str) -> float | None:
        if provider != LOCAL:
            return None
        counters = local.engine_of(model)[0].counters
        return counters.running + counters.waiting

    def said(provider: str, model: str, prompt_tokens: int) -> Speed | None:
        if provider != LOCAL:
            return None
        expected = outlook(local.engine_of(model)[0].counters, prompt_tokens)
        return None if expected is None else Speed(*expected)

    return Speeds(load, said)
