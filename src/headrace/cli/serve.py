"""`headrace serve`."""

from __future__ import annotations

import errno
import ipaddress
import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace
from sqlalchemy.exc import SQLAlchemyError

import headrace
from headrace import app as platform
from headrace.cli.configuration import changed, choose
from headrace.cli.errors import CommandError
from headrace.cli.options import KVOption, QuantizationOption, TensorParallelOption
from headrace.cli.progress import shown
from headrace.config.load import Loaded
from headrace.config.schema import LOCAL, Configuration
from headrace.config.secrets import SecretError
from headrace.gateway.keystore import has_keys
from headrace.protocol.errors import TooLarge
from headrace.providers.local import LocalProvider
from headrace.registry.pull import pull
from headrace.runtime.layout import table
from headrace.runtime.options import KVChoice, Quantization
from headrace.runtime.process import EngineFailed

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


def serve(
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
    draft: Annotated[
        str | None,
        typer.Option(metavar="REF", help="A smaller model of the same vocabulary, to speed up."),
    ] = None,
    tensor_parallel: TensorParallelOption = None,
) -> None:
    """Serve models on an OpenAI-compatible port, with a page that shows every call.

    \b
    headrace serve
    headrace serve headrace.yaml --port 9000
    headrace serve --model hf:org/name
    """
    began = time.monotonic()

    def read() -> Loaded:
        chosen = choose(config, model)
        chosen = _rounded(_with_address(chosen, host, port), quantization, kv)
        asked = {"draft": draft, "tensor_parallel": tensor_parallel}
        given = {name: value for name, value in asked.items() if value is not None}
        if not given:
            return chosen
        engine = replace(chosen.configuration.engine, **given)
        return changed(chosen, replace(chosen.configuration, engine=engine))

    loaded = read()
    server = loaded.configuration.server
    with _listen(server.host, server.port) as listener:
        _refuse_strangers(listener, loaded.configuration)
        models = _pull(loaded.configuration)
        try:
            app = platform.App.build(loaded, models)
            if loaded.path is not None:
                app.watch(loaded.path, read)
            platform.serve(app, listener, lambda: _greet(app, listener, time.monotonic() - began))
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


def _pull(configuration: Configuration) -> dict[str, Path]:
    """The files of all local models and adapters by reference; what is not here is fetched."""
    local = [m for m in configuration.models.values() if m.provider == LOCAL]
    sources = {m.source for m in local} | {m.adapter for m in local if m.adapter is not None}
    if local and configuration.engine.draft is not None:
        sources.add(configuration.engine.draft)
    with shown() as progress:
        return {source: pull(source, progress) for source in sorted(sources)}


def _greet(app: platform.App, listener: socket.socket, seconds: float) -> None:
    """Say where, what and how, and a line to paste."""
    configuration = app.services.configuration
    host, port = listener.getsockname()[:2]
    address = f"http://{_reachable(host)}:{port}"
    lines = [f"Headrace {headrace.__version__} is ready after {seconds:.1f} s.", ""]
    lines.append(f"  address  {address}/v1   (page: {address}/)")
    local = app.services.providers.get(LOCAL)
    engines = local.engines if isinstance(local, LocalProvider) else {}
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
