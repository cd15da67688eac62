"""`headrace serve`."""

from __future__ import annotations

import errno
import ipaddress
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace
from sqlalchemy.exc import SQLAlchemyError

import headrace
from headrace import app as platform
from headrace.cli.configuration import changed, choose
from headrace.cli.errors import CommandError, one_line
from headrace.cli.options import (
    KVOption,
    OffloadOption,
    QuantizationOption,
    TensorParallelOption,
)
from headrace.config.check import SIZE_EXPECTED
from headrace.config.load import Loaded
from headrace.config.schema import LOCAL, Configuration
from headrace.config.secrets import SecretError
from headrace.gateway.board import MOST_WORKERS
from headrace.gateway.keystore import has_keys
from headrace.observability.lines import LineFormatter
from headrace.protocol.errors import TooLarge
from headrace.providers.local import LocalProvider
from headrace.registry.pull import pull
from headrace.runtime.layout import table
from headrace.runtime.options import KVChoice, Quantization
from headrace.runtime.process import EngineFailed, EngineProcess
from headrace.workers import Post, Workers

# Imported where there is something to fetch: what draws bars takes megabytes of every server.
PROGRESS = "headrace.cli.progress"
_QUESTION = "What is the capital of France?"
# A first call of a model, by what it is for: path and body.
TRY: Mapping[str, tuple[str, dict[str, object]]] = {
    "generate": (
        "/v1/chat/completions",
        # a small model rambles at temperature 1
        {"messages": [{"role": "user", "content": _QUESTION}], "temperature": 0},
    ),
    "embed": ("/v1/embeddings", {"input": _QUESTION}),
    "classify": ("/v1/classify", {"input": _QUESTION}),
}


def serve(  # noqa: PLR0913 (each is an option)
    config: Annotated[
        Path | None,
        typer.Argument(help="Configuration file. Default: ./headrace.yaml, else built in."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="REF", help="Serve this model, first of all.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on. [8000]")
    ] = None,
    quantization: QuantizationOption = None,
    kv: KVOption = None,
    kv_offload: OffloadOption = None,
    draft: Annotated[
        str | None,
        typer.Option(metavar="REF", help="A smaller model of the same vocabulary, to speed up."),
    ] = None,
    tensor_parallel: TensorParallelOption = None,
    workers: Annotated[
        int, typer.Option(min=1, max=MOST_WORKERS, help="Processes, where no model is local.")
    ] = 1,
) -> None:
    """Serve models on an OpenAI-compatible port, with a page that shows every call.

    \b
    headrace serve
    headrace serve headrace.yaml --port 9000
    headrace serve --model hf:org/name
    headrace serve headrace.yaml --workers 4
    """
    began = time.monotonic()

    def read() -> Loaded:
        chosen = choose(config, model)
        chosen = _rounded(_with_address(chosen, host, port), quantization, kv)
        asked = {"draft": draft, "tensor_parallel": tensor_parallel, "kv_offload": kv_offload}
        given = {name: value for name, value in asked.items() if value is not None}
        if not given:
            return chosen
        engine = replace(chosen.configuration.engine, **given)
        try:
            _ = engine.kv_offload_bytes
        except ValueError:
            raise CommandError(f"--kv-offload {kv_offload}: {SIZE_EXPECTED}.") from None
        return changed(chosen, replace(chosen.configuration, engine=engine))

    loaded = read()
    if workers > 1:
        _serve_by_several(loaded, read, workers, began)
        return
    server = loaded.configuration.server
    with _listen(server.host, server.port) as listener:
        _refuse_strangers(listener, loaded.configuration)
        models = _pull(loaded.configuration)
        with _explained():
            app = platform.App.build(loaded, models)
            if loaded.path is not None:
                app.watch(loaded.path, read)
            local = app.services.providers.get(LOCAL)
            engines = local.engines if isinstance(local, LocalProvider) else {}
            configuration = loaded.configuration

            def ready() -> None:
                _greet(configuration, engines, listener, time.monotonic() - began)

            platform.serve(app, listener, ready)


def _serve_by_several(
    loaded: Loaded, read: Callable[[], Loaded], workers: int, began: float
) -> None:
    """Serve by several processes, which share limits and budgets."""
    configuration = loaded.configuration
    for name, model in configuration.models.items():
        if model.provider == LOCAL:
            raise CommandError(
                f"Several workers serve models of other servers only, and '{name}' is local: "
                "leave --workers out, or serve it on a port of its own and name that as a provider."
            )
    server = configuration.server
    listeners = [_listen(server.host, server.port)]
    with ExitStack() as stack:
        stack.enter_context(listeners[0])
        _refuse_strangers(listeners[0], configuration)
        listeners = _listen_beside(listeners[0], workers)
        for listener in listeners:
            stack.enter_context(listener)
        shared = platform.Shared.between(workers)
        plain = configuration.logging.format == "text"
        lines = logging.StreamHandler()
        lines.setFormatter(LineFormatter())
        if not plain:
            logging.getLogger().addHandler(lines)

        def work(post: Post) -> int:
            shared.join(post.number)
            if plain:
                logging.basicConfig(format=f"worker {post.number}: %(message)s")
            else:
                logging.getLogger().removeHandler(lines)  # a worker has lines of its own
            try:
                with one_line(), _explained():
                    app = platform.App.build(loaded, {}, shared=shared)
                    if loaded.path is not None:
                        app.watch(loaded.path, read)
                    platform.serve(app, post.listener, post.say_ready, post.line)
            except typer.Exit as end:
                return end.exit_code
            return 0

        def ready() -> None:
            _greet(configuration, {}, listeners[0], time.monotonic() - began, workers)

        status = Workers(listeners, work, ready).run()
    if status:
        raise typer.Exit(status)


@contextmanager
def _explained() -> Iterator[None]:
    """Say in a line what commonly keeps a server from starting. Raises CommandError."""
    try:
        yield
    except (SecretError, EngineFailed, TooLarge) as error:
        raise CommandError(str(error)) from error
    except (OSError, SQLAlchemyError) as error:
        raise CommandError(f"Cannot open the call log: {error}") from error


def _refuse_strangers(listener: socket.socket, configuration: Configuration) -> None:
    """Other machines are only let in by keys."""
    host = listener.getsockname()[0]
    if ipaddress.ip_address(host).is_loopback:
        return
    if not has_keys(platform.data_directory(configuration)):
        raise CommandError(
            f"Without keys the server listens on this machine only, not on {host}. "
            "Create one first: headrace keys create --name NAME"
        )


def _with_address(loaded: Loaded, host: str | None, port: int | None) -> Loaded:
    server = loaded.configuration.server
    server = replace(
        server,
        host=server.host if host is None else host,
        port=server.port if port is None else port,
    )
    return changed(loaded, replace(loaded.configuration, server=server))


def _rounded(loaded: Loaded, to: Quantization | None, kv: KVChoice | None) -> Loaded:
    if to is None and kv is None:
        return loaded
    engine = loaded.configuration.engine
    engine = replace(engine, quantization=to or engine.quantization, kv=kv or engine.kv)
    return changed(loaded, replace(loaded.configuration, engine=engine))


def _listen(host: str, port: int) -> socket.socket:
    """Bind first: a taken port is known before a model is loaded."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except socket.gaierror:
        raise CommandError(f"There is no address '{host}' to listen on.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CommandError(
                f"Port {port} on {host} is taken. Stop what uses it, or choose another: --port."
            ) from None
        raise CommandError(f"Cannot listen on {host}:{port}: {error.strerror}.") from None


def _listen_beside(first: socket.socket, count: int) -> list[socket.socket]:
    """As many sockets on the address of `first`, which is closed: that it could be bound has shown
    that the address is nobody's. The kernel spreads connections between them."""
    address = first.getsockname()
    first.close()
    try:
        return [
            socket.create_server(address[:2], family=first.family, backlog=2048, reuse_port=True)
            for _ in range(count)
        ]
    except OSError as error:
        raise CommandError(f"Cannot listen on {address[0]}: {error.strerror}.") from None


def _pull(configuration: Configuration) -> dict[str, Path]:
    """The files of all local models and adapters by reference; what is not here is fetched."""
    local = [m for m in configuration.models.values() if m.provider == LOCAL]
    sources = {m.source for m in local} | {m.adapter for m in local if m.adapter is not None}
    if local and configuration.engine.draft is not None:
        sources.add(configuration.engine.draft)
    if not sources:
        return {}
    with import_module(PROGRESS).shown() as progress:
        return {source: pull(source, progress) for source in sorted(sources)}


def _greet(
    configuration: Configuration,
    engines: Mapping[str, EngineProcess],
    listener: socket.socket,
    seconds: float,
    workers: int = 1,
) -> None:
    """Say where, what and how, and a line to paste."""
    host, port = listener.getsockname()[:2]
    address = f"http://{_reachable(host)}:{port}"
    lines = [f"Headrace {headrace.__version__} is ready after {seconds:.1f} s.", ""]
    lines.append(f"  address  {address}/v1   (page: {address}/)")
    if workers > 1:
        lines.append(f"  workers  {workers}")
    for name, model in configuration.models.items():
        engine = engines.get(model.source) if model.provider == LOCAL else None
        if engine is not None and engine.loaded is None:
            lines.append(f"  model    {name} (loaded when it is asked for)")
            continue
        if engine is None or engine.loaded is None:
            lines.append(f"  model    {name} at {model.provider}")
            continue
        formats = ", ".join(engine.loaded.formats)
        lines.append(f"  model    {name} ({formats}; context {engine.loaded.context})")
        layout = engine.loaded.layout
        lines.append(f"  backend  {layout.backend}: {layout.because}")
        lines += [f"           {line}" for line in table(layout.lines)]
    first, model = next(iter(configuration.models.items()))
    engine = engines.get(model.source) if model.provider == LOCAL else None
    task = "generate" if engine is None or engine.loaded is None else engine.loaded.task
    path, body = TRY[task]
    lines += [
        "",
        "Try it:",
        "",
        f"curl {address}{path} -H 'Content-Type: application/json' "
        f"-d {_quoted(json.dumps({'model': first, **body}))}",
        "",
        "Ctrl-C stops.",
    ]
    typer.echo("\n".join(lines))


def _reachable(host: str) -> str:
    """An address of this machine that a client can use, for one that the server listens on."""
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        return "127.0.0.1"
    return f"[{host}]" if address.version == 6 else host


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
