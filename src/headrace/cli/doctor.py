"""`headrace doctor`: what this machine can run, and why; what is wrong, and what to do."""

from __future__ import annotations

import errno
import importlib
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

import headrace
from headrace.cli.configuration import FILE, choose
from headrace.cli.options import QuantizationOption
from headrace.config.load import ConfigurationError
from headrace.config.schema import DEFAULT_MODEL, LOCAL, Server
from headrace.registry.home import home
from headrace.registry.pull import local_path, pulled
from headrace.runtime.backends.choice import gpus, importable
from headrace.runtime.embedding import Encoder, is_encoder
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.layout import table
from headrace.runtime.models.assembly import decoder_program
from headrace.runtime.models.program import Program
from headrace.runtime.models.sharding import fitting
from headrace.runtime.options import Quantization
from headrace.runtime.processors import about_processor, usable_processors
from headrace.runtime.weights.tensor import Tensor

LITTLE_ROOM = 2e9  # bytes; a small model and its download fit
FEATURES = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `advice` is what to do where something is wrong."""

    name: str
    text: str
    advice: str | None = None


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="Say of this model which kernels run it; a reference.")
    ] = None,
    quantization: QuantizationOption = None,
) -> None:
    """Say what this machine can run, and why. Exit status 1 where something must be repaired.

    \b
    headrace doctor
    headrace doctor ./model.gguf
    """
    wrong = False
    if model is None:
        findings = _findings()
    else:
        findings = chain([_backend()], _kernels(model, quantization, elsewhere=True))
    for finding in findings:
        mark = " " if finding.advice is None else "!"
        typer.echo(f"{mark} {finding.name:<15}{finding.text}")
        if finding.advice is not None:
            wrong = True
            typer.echo(f"  {'':<15}-> {finding.advice}")
    if wrong:
        raise typer.Exit(1)


def _findings() -> Iterator[Finding]:
    yield Finding("headrace", f"{headrace.__version__} at {Path(headrace.__file__).parent}")
    yield Finding("python", f"{platform.python_version()} at {sys.executable}")
    yield Finding("machine", f"{platform.machine()}, {_processor()}, {_memory()}")
    yield Finding("processors", f"{usable_processors()} usable of {os.cpu_count()}")
    yield Finding("features", " ".join(_features()) or "none that the kernels know")
    yield _backend()
    yield _gpus()
    yield from _configuration()
    yield from _models()
    yield _disk()


def _backend() -> Finding:
    if importable("cpu") is None:
        return Finding(
            "backend",
            "reference (numpy), because the native kernels are not built",
            "Install with a C++ compiler present: make serve, or pip install .",
        )
    levels = importlib.import_module("headrace.runtime.backends.cpu._native").levels()
    forced = os.environ.get("HEADRACE_CPU_LEVEL")
    if forced:
        return Finding("backend", f"cpu at level {forced}, because HEADRACE_CPU_LEVEL says so")
    rest = f"; it also runs {', '.join(levels[1:])}" if levels[1:] else ""
    return Finding("backend", f"cpu at level {levels[0]}, the best of this processor{rest}")


def _gpus() -> Finding:
    count = gpus()
    shared = "; --tensor-parallel shares a model among them" if count > 1 else ""
    return Finding("gpus", f"{count} of NVIDIA{shared}")


def _configuration() -> Iterator[Finding]:
    try:
        loaded = choose(None)
    except ConfigurationError as error:
        first = str(error).splitlines()[0]
        yield Finding("configuration", first, f"headrace config check {FILE}")
        yield _port(Server())
        return
    place = loaded.path or "built in (no ./headrace.yaml)"
    yield Finding("configuration", f"{place}, version {loaded.version}")
    for name, model in loaded.configuration.models.items():
        if model.provider == LOCAL and local_path(model.source) is None:
            yield Finding("model", f"{name} is not here yet; `serve` will fetch {model.source}")
    yield _port(loaded.configuration.server)


def _port(server: Server) -> Finding:
    place = f"{server.host}:{server.port}"
    try:
        family = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((server.host, server.port), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return Finding("port", f"{place} is taken", "Stop what uses it, or serve --port N.")
        return Finding("port", f"{place}: {error}", "Choose an address of this machine: --host.")
    return Finding("port", f"{place} is free")


def _models() -> Iterator[Finding]:
    for model in pulled():
        yield Finding("model", f"{model.reference} ({model.size / 1e6:.0f} MB)")
    if local_path(DEFAULT_MODEL) is not None:
        yield from _kernels(DEFAULT_MODEL, None)


def _kernels(
    model: str, quantization: Quantization | None, *, elsewhere: bool = False
) -> Iterator[Finding]:
    """Which format and kernel each op of a model gets, and why; `elsewhere`: on GPUs, too, where
    there are none."""
    path = local_path(model)
    if path is None:
        yield Finding("model", f"{model} is not here", f"headrace pull {model}")
        return
    try:
        if is_encoder(path):
            layout = Encoder.load(path).layout
        else:
            with Engine.load(path, EngineOptions(quantization=quantization)) as engine:
                layout, whole = engine.layout, engine.checkpoint
            parts = fitting(decoder_program(whole.architecture), whole.weights)
            yield Finding("parts", f"--tensor-parallel {', '.join(map(str, parts))}")
    except (OSError, ValueError, MemoryError) as error:
        yield Finding("kernels", f"{model} does not load: {error}", f"headrace pull {model}")
        return
    yield Finding("kernels", f"{model} on {layout.backend}: {layout.because}")
    for line in table(layout.lines):
        yield Finding("", line)
    if elsewhere and not gpus() and not is_encoder(path):
        yield from _on_gpus(decoder_program(whole.architecture), whole.weights)


def _on_gpus(program: Program, weights: Mapping[str, Tensor]) -> Iterator[Finding]:
    """What GPUs would run, by what they are able to."""
    if importable("cuda") is None:
        yield Finding("gpus", "none, and their backend is not installed: pip install headrace[gpu]")
        return
    told = importlib.import_module("headrace.runtime.backends.cuda.told")
    for capability, kernels in told.would_run(program, weights).items():
        said = "; ".join(f"{what}: {kernel}" for what, kernel in kernels.items())
        yield Finding("gpus", f"none; one of capability {capability} would run {said}")


def _disk() -> Finding:
    place = home()
    existing = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    text = f"{place}, {free / 1e9:.1f} GB free"
    if not os.access(existing, os.W_OK):
        return Finding("data", f"{place} cannot be written", "Set HEADRACE_HOME to another.")
    if free < LITTLE_ROOM:
        return Finding("data", text, "Make room, or set HEADRACE_HOME to a larger disk.")
    return Finding("data", text)


def _processor() -> str:
    return about_processor().get("model name") or platform.processor() or "unknown processor"


def _features() -> list[str]:
    about = about_processor()
    words = set((about.get("flags") or about.get("Features") or "").split())
    return [feature for feature in FEATURES if feature in words]


def _memory() -> str:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{size / 2**30:.0f} GiB memory"
