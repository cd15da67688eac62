"""The engine in its own process: `python -m headrace.runtime.worker FD`.

FD is one end of a socket pair that carries `runtime.channel`; the first message names the model,
and may take its time (`runtime.spare`). The process ends when the channel closes: an engine never
outlives the platform that started it, however that one died.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from .backends.base import GroupLost
from .channel import (
    Loaded,
    Message,
    encodings_frame,
    frame,
    outputs_frame,
    parse,
    read_encode,
    read_load,
    read_request,
    refusal_frame,
)
from .embedding import Encoder, EncoderOptions, is_encoder
from .encoding import EncoderQueue
from .engine import Engine, EngineOptions
from .request import RequestRefused

NO_ADAPTERS = "this model reads whole texts; it takes no adapters"

log = logging.getLogger(__name__)


def main() -> None:
    """Load the model, say so, and serve until the channel closes."""
    logging.basicConfig(format="engine %(levelname)s %(name)s: %(message)s")
    logging.getLogger("headrace").setLevel(logging.INFO)
    # A terminal's ^C and a service manager's stop go to the whole group: the platform handles
    # them, and closes the channel when the running calls have ended.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=receive, args=(channel, inbox), daemon=True).start()
    path, options, adapters = read_load(inbox.get())
    began = time.monotonic()
    try:
        engine = load(path, options)
    except (ValueError, OSError, MemoryError) as error:
        channel.sendall(frame("failed", message=str(error) or type(error).__name__))
        return
    refused = begin_with(engine, adapters)
    loaded = replace(describe(engine, time.monotonic() - began), refused=refused)
    channel.sendall(frame("ready", loaded=asdict(loaded)))
    try:
        serve(engine, channel, inbox)
    except GroupLost:
        log.exception("the engine cannot go on")
        os._exit(1)  # at once: what is left of a group of ranks may wait for one that is gone
    (engine.encoder if isinstance(engine, EncoderQueue) else engine).close()


def load(path: Path, options: EngineOptions) -> Engine | EncoderQueue:
    """The model at `path`: what generates is an engine, what reads whole texts an encoder.

    Raises WeightsError, ValueError, OSError.
    """
    if not is_encoder(path):
        return Engine.load(path, options)
    return EncoderQueue(Encoder.load(path, EncoderOptions(options.backend, options.threads)))


def begin_with(engine: Engine | EncoderQueue, adapters: Mapping[str, Path]) -> dict[str, str]:
    """Load adapters; why not, by name, where one cannot be: the model itself is served."""
    refused = {}
    for name, path in adapters.items():
        try:
            if isinstance(engine, EncoderQueue):
                raise ValueError(NO_ADAPTERS)
            engine.load_adapter(name, path)
        except (ValueError, OSError, MemoryError) as error:
            refused[name] = str(error) or type(error).__name__
    return refused


def describe(engine: Engine | EncoderQueue, seconds: float) -> Loaded:
    """What was loaded."""
    if isinstance(engine, EncoderQueue):
        encoder = engine.encoder
        return Loaded(
            name=encoder.model.name,
            context=encoder.reader.longest,
            formats=encoder.formats,
            layout=encoder.layout,
            seconds=seconds,
            task="embed" if encoder.model.head is None else "classify",
        )
    return Loaded(
        name=engine.checkpoint.architecture.name,
        context=engine.context,
        formats=engine.checkpoint.formats,
        layout=engine.layout,
        seconds=seconds,
    )


def receive(channel: socket.socket, inbox: queue.SimpleQueue[Message]) -> None:
    """Read messages as they come; end the process, mid-step if need be, when there is no reader."""
    with channel.makefile("rb") as lines:
        for line in lines:
            inbox.put(parse(line))
    os._exit(0)


def serve(
    engine: Engine | EncoderQueue, channel: socket.socket, inbox: queue.SimpleQueue[Message]
) -> None:
    """Step while there is work, sleep while there is none."""
    stopped = False

    def listen() -> None:
        nonlocal stopped
        while not stopped and not inbox.empty():
            stopped = not attend(engine, channel, inbox)

    while True:
        if engine.idle:
            stopped = not attend(engine, channel, inbox)
        listen()
        if stopped:
            return
        if isinstance(engine, EncoderQueue):
            encode(engine, channel)
        else:
            channel.sendall(outputs_frame(engine.step(listen), engine.counters()))


def attend(
    engine: Engine | EncoderQueue, channel: socket.socket, inbox: queue.SimpleQueue[Message]
) -> bool:
    """Do what the next message asks for; waits for it. False where it asks to stop."""
    message = inbox.get()
    kind = message["kind"]
    if kind == "cancel":
        engine.cancel(message["id"])
    elif "adapter" in kind:
        adapt(engine, channel, inbox, message)
    elif kind in ("sleep", "wake"):
        channel.sendall(frame("changed", id=message["id"], error=rest(engine, kind)))
    elif kind != "stop":
        accept(engine, channel, message)
    return bool(kind != "stop")


def encode(engine: EncoderQueue, channel: socket.socket) -> None:
    """Run a step of an encoder, where it has work; a step that fails ends its requests alone."""
    if engine.idle:
        return
    begun = dict(engine.jobs)
    try:
        found = engine.step()
    except Exception:
        log.exception("a step of %d requests failed", len(begun))
        for id, job in begun.items():
            if job.begun:
                engine.cancel(id)
                channel.sendall(refusal_frame(id, RequestRefused("fault", "the step failed")))
        return
    channel.sendall(encodings_frame(found, engine.counters()))


def rest(engine: Engine | EncoderQueue, kind: str) -> str | None:
    """Let a model sleep, or wake it: why not, where it cannot."""
    if isinstance(engine, EncoderQueue):
        return "a model that reads whole texts does not sleep"
    try:
        if kind == "sleep":
            engine.sleep()
        else:
            engine.wake()
    except (ValueError, MemoryError) as error:
        return str(error) or type(error).__name__
    return None


def adapt(
    engine: Engine | EncoderQueue,
    channel: socket.socket,
    inbox: queue.SimpleQueue[Message],
    message: Message,
) -> None:
    """Load or drop an adapter. Its file is read beside the steps; then it comes back here."""
    kind, id, name = message["kind"], message["id"], message["name"]
    if isinstance(engine, EncoderQueue):
        channel.sendall(frame("changed", id=id, error=NO_ADAPTERS))
    elif kind == "drop_adapter":
        found = engine.drop_adapter(name)
        channel.sendall(frame("changed", id=id, error=None if found else f"no adapter '{name}'"))
    elif kind == "load_adapter":
        threading.Thread(target=read_adapter, args=(engine, inbox, message), daemon=True).start()
    else:
        error = message["error"]
        if error is None:
            try:
                engine.adapters.put(name, message["adapter"])
            except (ValueError, MemoryError) as problem:
                error = str(problem) or type(problem).__name__
        channel.sendall(frame("changed", id=id, error=error))


def read_adapter(engine: Engine, inbox: queue.SimpleQueue[Message], message: Message) -> None:
    """Read an adapter's file and hand it to the thread that steps."""
    adapter, error = None, None
    try:
        adapter = engine.adapters.read(Path(message["path"]))
    except (ValueError, OSError, MemoryError) as problem:
        error = str(problem) or type(problem).__name__
    except Exception:
        log.exception("adapter %s could not be read", message["name"])
        error = "the engine could not read the adapter"
    inbox.put({**message, "kind": "put_adapter", "adapter": adapter, "error": error})


def accept(engine: Engine | EncoderQueue, channel: socket.socket, message: Message) -> None:
    """Take a request in, or say why not; a fault of ours refuses this request alone."""
    try:
        if isinstance(engine, Engine) and message["kind"] == "generate":
            engine.submit(read_request(message))
        elif isinstance(engine, Engine) and message["kind"] == "count":
            tokens = engine.count(read_request(message))
            channel.sendall(frame("counted", id=message["id"], tokens=tokens))
        elif isinstance(engine, EncoderQueue) and message["kind"] == "encode":
            engine.submit(read_encode(message))
        else:
            does = "generates text" if isinstance(engine, Engine) else "reads whole texts"
            raise RequestRefused("invalid_value", f"this model {does} only", field="model")
        return
    except RequestRefused as refused:
        reason = refused
    except Exception:
        log.exception("request %s could not be taken in", message["id"])
        reason = RequestRefused("fault", "the engine could not take the request in")
    channel.sendall(refusal_frame(message["id"], reason))


if __name__ == "__main__":
    main()
