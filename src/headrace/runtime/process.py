"""The platform's side of an engine process: start it, talk to it, start it again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

from .channel import (
    Loaded,
    Message,
    encode_frame,
    frame,
    load_frame,
    parse,
    read_encodings,
    read_loaded,
    read_outputs,
    read_refusal,
    request_frame,
)
from .options import EngineOptions
from .request import Counters, EncodeRequest, Encoding, Output, Request
from .spare import Spare, Worker, start_worker

RESTART_DELAYS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds, by failed starts in a row
RESTART_WAIT = 10.0  # seconds that a call waits for an engine that died to come back
STOP_GRACE = 5.0  # seconds

News = Output | Encoding | int | Exception  # int: a count of tokens

log = logging.getLogger(__name__)


class EngineDied(RuntimeError):
    """The engine process is not there: it died under the request, or is being started."""


class EngineFailed(RuntimeError):
    """The engine could not load its model; the message says why."""


class RestRefused(ValueError):
    """The engine cannot sleep; the message says why."""


class AdapterRefused(ValueError):
    """The engine does not take the adapter; the message says why."""


class EngineProcess:
    """One engine in a process of its own, supervised."""

    def __init__(
        self,
        path: Path,
        options: EngineOptions,
        adapters: Mapping[str, Path] | None = None,
        spare: Spare | None = None,
    ) -> None:
        """`spare` may have a process ready, for whoever of several engines is started next."""
        self.path = path
        self.options = options
        self.adapters = dict(adapters or {})  # by name; a process that starts again has them too
        self.spare = spare or Spare()
        self.loaded: Loaded | None = None
        self.counters = Counters()
        self.restarts = 0
        self.process: asyncio.subprocess.Process | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.streams: dict[str, asyncio.Queue[News]] = {}
        self.changes: dict[str, asyncio.Future[Message]] = {}  # under way
        self.supervisor: asyncio.Task[None] | None = None
        self.awake = asyncio.Event()
        self.awake.set()
        self.settled = asyncio.Event()  # not while a process that died is being replaced
        self.settled.set()

    @property
    def ready(self) -> bool:
        """Whether the engine takes requests now."""
        return self.writer is not None

    async def start(self) -> Loaded:
        """Start the process and wait for its model and adapters. Raises EngineFailed.

        An adapter that cannot be loaded fails the first start; a later one goes without it.
        """
        first = self.loaded is None
        reader, loaded = await self.launch()
        if loaded.refused and first:
            await self.close()
            raise EngineFailed(next(iter(loaded.refused.values())))
        self.go_without(loaded.refused)
        self.supervisor = asyncio.create_task(self.supervise(reader))
        return loaded

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """Outputs of one request, the last with its `finish`. Closing early cancels it.

        Raises RequestRefused, or EngineDied. Outputs wait here for a slow reader: at most one a
        token, so `max_tokens` and the context bound them.
        """
        writer = await self.channel()
        news: asyncio.Queue[News] = asyncio.Queue()
        self.streams[request.id] = news
        try:
            writer.write(request_frame(request))
            finished = False
            while not finished:
                output = await news.get()
                if not isinstance(output, Output):
                    raise output if isinstance(output, Exception) else EngineDied("no output came")
                finished = output.finish is not None
                yield output
        finally:
            # still known: neither finished nor failed, so the engine has to be told
            if self.streams.pop(request.id, None) is not None and self.writer is not None:
                self.writer.write(frame("cancel", id=request.id))

    async def encode(self, request: EncodeRequest) -> Encoding:
        """What an encoder makes of texts. Cancelled where the caller is.

        Raises RequestRefused, or EngineDied.
        """
        found = await self.ask(request.id, encode_frame(request))
        if isinstance(found, Encoding):
            return found
        raise found if isinstance(found, Exception) else EngineDied("no encoding came")

    async def count(self, request: Request) -> int:
        """How many tokens the prompt of a request has. Raises RequestRefused, or EngineDied."""
        found = await self.ask(request.id, request_frame(request, kind="count"))
        if isinstance(found, int):
            return found
        raise found if isinstance(found, Exception) else EngineDied("no count came")

    async def ask(self, id: str, question: bytes) -> News:
        """The one answer to a message. Cancelled where the caller is."""
        writer = await self.channel()
        news: asyncio.Queue[News] = asyncio.Queue()
        self.streams[id] = news
        try:
            writer.write(question)
            return await news.get()
        finally:
            if self.streams.pop(id, None) is not None and self.writer is not None:
                self.writer.write(frame("cancel", id=id))

    async def load_adapter(self, name: str, path: Path) -> None:
        """Let requests name this adapter; running ones go on. Raises AdapterRefused, EngineDied."""
        await self.change(AdapterRefused, "load_adapter", name=name, path=str(path))
        self.adapters[name] = path

    async def drop_adapter(self, name: str) -> None:
        """Take no new request for an adapter; those that run end with it.

        Raises AdapterRefused where there is none of the name, EngineDied.
        """
        self.adapters.pop(name, None)
        await self.change(AdapterRefused, "drop_adapter", name=name)

    async def sleep(self) -> None:
        """Let the model leave its GPU; no request runs. A process that dies now is started again
        when it is woken. Raises RestRefused, EngineDied."""
        await self.change(RestRefused, "sleep")
        self.awake.clear()

    async def wake(self) -> None:
        """Let the model take its GPU's memory again. Raises EngineFailed."""
        self.awake.set()
        try:
            await self.change(RestRefused, "wake")
        except (RestRefused, EngineDied) as error:
            raise EngineFailed(f"{self.path} could not be woken: {error}") from error

    async def change(self, refusal: type[ValueError], kind: str, **content: str) -> None:
        """Ask for a change and wait until it is made. Raises `refusal`, EngineDied."""
        writer = await self.channel()
        id = secrets.token_hex(8)
        self.changes[id] = asyncio.get_running_loop().create_future()
        try:
            writer.write(frame(kind, id=id, **content))
            message = await self.changes[id]
        finally:
            del self.changes[id]
        if message["error"] is not None:
            raise refusal(message["error"])

    async def channel(self) -> asyncio.StreamWriter:
        """Where messages to the engine go. One that died is waited for while it is started again;
        EngineDied where that takes too long, or has failed."""
        if self.writer is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESTART_WAIT):
                    await self.settled.wait()
        if self.writer is None:
            raise EngineDied("the engine is being started")
        return self.writer

    async def close(self) -> None:
        """End the process: ask, then insist. Running requests fail."""
        if self.supervisor is not None:
            self.supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.supervisor
        self.settled.set()
        self.awake.set()
        if self.writer is not None:
            self.writer.write(frame("stop"))
        await self.end()

    async def launch(self) -> tuple[asyncio.StreamReader, Loaded]:
        """Start a process and wait until it is ready. Raises EngineFailed, OSError."""
        worker, message = await self.load()
        if message["kind"] == "failed":
            await worker.end()
            raise EngineFailed(f"{self.path} could not be loaded: {message['message']}")
        self.writer = worker.writer
        self.loaded = read_loaded(message)
        self.spare.renew()
        return worker.reader, self.loaded

    async def load(self) -> tuple[Worker, Message]:
        """Hand a process the model: what it says. Raises EngineFailed, OSError.

        One that ends without a word was killed, maybe before it was ours: a fresh one is asked.
        """
        for take in (self.spare.take, start_worker):
            worker = await take()
            self.process = worker.process
            try:
                worker.writer.write(load_frame(self.path, self.options, self.adapters))
                line = await worker.reader.readline()
            except ConnectionError:
                line = b""
            except BaseException:
                worker.writer.close()  # on which the process ends
                raise
            if line:
                return worker, parse(line)
            await worker.end()
        raise EngineFailed(f"{self.path} could not be loaded: its process ended")

    async def supervise(self, reader: asyncio.StreamReader) -> None:
        """Pass news on while the process lives; start it again when it is gone."""
        failures = 0
        while True:
            await self.listen(reader)
            self.settled.clear()
            await self.end()
            log.error("the engine process of %s ended; starting it again", self.path)
            await self.awake.wait()
            while True:
                await asyncio.sleep(RESTART_DELAYS[min(failures, len(RESTART_DELAYS) - 1)])
                try:
                    reader, loaded = await self.launch()
                except (EngineFailed, OSError):
                    failures += 1
                    log.exception("the engine did not start again")
                else:
                    break
                finally:
                    self.settled.set()
            failures = 0
            self.restarts += 1
            self.go_without(loaded.refused)

    def go_without(self, refused: Mapping[str, str]) -> None:
        """Forget adapters that could not be loaded, and why."""
        for name, why in refused.items():
            log.error("adapter %s is not there any more: %s", name, why)
            self.adapters.pop(name, None)

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Hand messages to the streams they are for, until the channel closes or makes no sense."""
        try:
            while line := await reader.readline():
                self.receive(parse(line))
        except ConnectionError:
            return  # killed with unread messages in its socket
        except Exception:
            log.exception("the engine process of %s sent nonsense", self.path)

    def receive(self, message: Message) -> None:
        """One message of the engine."""
        if message["kind"] == "refused":
            self.hand(message["id"], read_refusal(message), last=True)
            return
        if message["kind"] == "counted":
            self.hand(message["id"], message["tokens"], last=True)
            return
        if message["kind"] == "changed":
            change = self.changes.get(message["id"])
            if change is not None and not change.done():
                change.set_result(message)
            return
        self.counters = Counters(**message["counters"])
        if message["kind"] == "encodings":
            for found in read_encodings(message):
                self.hand(found.id, found, last=True)
            return
        for output in read_outputs(message):
            self.hand(output.id, output, last=output.finish is not None)

    def hand(self, id: str, news: News, *, last: bool) -> None:
        """Give one stream its news; of a stream that nobody reads any more there is none."""
        stream = self.streams.pop(id, None) if last else self.streams.get(id)
        if stream is not None:
            stream.put_nowait(news)

    async def end(self) -> None:
        """Fail what still runs, close the channel, reap the process."""
        writer, self.writer = self.writer, None
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.put_nowait(EngineDied("the engine process ended while the request ran"))
        for change in self.changes.values():
            if not change.done():
                change.set_exception(EngineDied("the engine process ended"))
        if writer is not None:
            writer.close()
        if self.process is not None:
            try:
                # not wait_for: it loses a cancellation that comes with the process's end
                async with asyncio.timeout(STOP_GRACE):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        self.counters = Counters(kv_blocks_total=self.counters.kv_blocks_total)
