"""The frame stage: events become one body, or server-sent events.

Nothing stands between provider and client but one event: a client that does not read stops the
provider.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from headrace.gateway.call import Call
from headrace.gateway.disconnect import ClientGone, Events
from headrace.gateway.formats import Format
from headrace.gateway.reply import Reply, decision_headers
from headrace.gateway.services import Services
from headrace.protocol import sse
from headrace.protocol.errors import UpstreamError
from headrace.protocol.generation import AnyRequest, Delta, Event, Finished, GenerationRequest
from headrace.protocol.media import MediaPiece
from headrace.protocol.openai_answer import Identity, answer_id


async def collect(
    services: Services, call: Call, events: Events, form: Format, request: AnyRequest
) -> bytes:
    """Run the generation to its end; the whole body."""
    async for event in events:
        _take(services, call, event)
    return form.whole(_identity(services, call), request, call.answer)


async def stream(
    services: Services, call: Call, events: Events, reply: Reply, request: GenerationRequest
) -> bytes:
    """Run the generation and send each event as it comes; the last frames, not yet sent."""
    encoder = None
    last: bytes | None = None
    async for event in events:
        _take(services, call, event)
        frames = b""
        opens = encoder is None
        if encoder is None:
            encoder = reply.form.stream(_identity(services, call), request)
            await reply.open_stream(decision_headers(call), encoder)
            frames = encoder.opening()
        if isinstance(event, Finished):
            last = frames + encoder.closing(event)
        elif (frames := frames + encoder.event(event)) or opens:
            await reply.write(frames)
    if last is None:
        raise UpstreamError("The answer ended before it was finished.")
    return last


async def pass_on(services: Services, call: Call, events: Events, reply: Reply) -> bytes:
    """Send each piece of an answer as it comes; of one that came whole, all of it, not yet sent."""
    last = b""
    async for event in events:
        _take(services, call, event)
        if not isinstance(event, MediaPiece):
            continue
        if event.whole:
            last = event.data
            continue
        if not reply.started:
            await reply.open_raw(decision_headers(call), event.content_type)
        if event.data:
            await reply.write(event.data)
    return last


@contextmanager
def heartbeats(reply: Reply, interval: float) -> Iterator[None]:
    """Send a comment line whenever an open stream was silent for `interval` seconds."""

    loop = asyncio.get_running_loop()
    writing: set[asyncio.Task[None]] = set()
    before = reply.writes
    timer: asyncio.TimerHandle

    async def beat() -> None:
        with suppress(ClientGone):  # the stream's own next write says so too
            await reply.write(sse.HEARTBEAT)

    def look() -> None:
        nonlocal before, timer
        if reply.started and reply.writes == before and not writing:
            task = loop.create_task(beat())
            writing.add(task)
            task.add_done_callback(writing.discard)
        before = reply.writes
        timer = loop.call_later(interval, look)

    timer = loop.call_later(interval, look)
    try:
        yield
    finally:
        timer.cancel()
        for task in writing:
            task.cancel()


def _take(services: Services, call: Call, event: Event) -> None:
    if call.served is None and call.execution is not None:
        call.served = call.execution.served
    call.answer.add(event)
    if isinstance(event, Delta) or (isinstance(event, MediaPiece) and event.data):
        call.last_delta = services.clock()
        if call.first_delta is None:
            call.first_delta = call.last_delta


def _identity(services: Services, call: Call) -> Identity:
    if call.identity is not None:
        return call.identity
    call.identity = Identity(
        id=answer_id(call.endpoint, services.new_id()),
        created=int(call.started_at),
        model=call.model if call.served is None else call.served.model,
        endpoint=call.endpoint,
    )
    return call.identity
