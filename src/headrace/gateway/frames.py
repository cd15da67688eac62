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
from headrace.gateway.reply import Reply, decision_headers
from headrace.gateway.services import Services
from headrace.protocol import sse
from headrace.protocol.errors import UpstreamError
from headrace.protocol.generation import (
    ChoiceFinished,
    Delta,
    Event,
    Finished,
    GenerationRequest,
)
from headrace.protocol.openai_answer import ChunkEncoder, Identity, answer_id, whole_body
from headrace.protocol.openai_encoding import encoding_body


async def collect(services: Services, call: Call, events: Events) -> bytes:
    """Run the generation to its end; the whole body."""
    async for event in events:
        _take(services, call, event)
    identity, answer = _identity(services, call), call.answer
    if call.request is None or isinstance(call.request, GenerationRequest):
        return whole_body(identity, answer)
    if answer.encoded is None or answer.finished is None:
        raise UpstreamError("The answer ended before it was finished.")
    usage = answer.finished.usage
    return encoding_body(identity.id, identity.model, call.request, answer.encoded, usage)


async def stream(
    services: Services, call: Call, events: Events, reply: Reply, *, include_usage: bool
) -> bytes:
    """Run the generation and send each event as it comes; the last frames, not yet sent."""
    encoder: ChunkEncoder | None = None
    opened: set[int] = set()  # choices
    closed: set[int] = set()
    async for event in events:
        _take(services, call, event)
        frames = b""
        if encoder is None:
            encoder = ChunkEncoder(_identity(services, call), include_usage=include_usage)
            await reply.open_stream(decision_headers(call))
        if (choice := getattr(event, "choice", 0)) not in opened:
            opened.add(choice)
            opening = encoder.opening(choice)
            frames = b"" if opening is None else sse.data_frame(opening)
        if isinstance(event, ChoiceFinished):
            closed.add(event.choice)
            await reply.write(frames + sse.data_frame(encoder.closing(event.reason, event.choice)))
            continue
        if isinstance(event, Finished):
            if not closed:
                frames += sse.data_frame(encoder.closing(event.reason))
            if include_usage:
                frames += sse.data_frame(encoder.usage(event))
            return frames + sse.DONE
        if isinstance(event, Delta):
            await reply.write(frames + sse.data_frame(encoder.delta(event)))
    raise UpstreamError("The answer ended before it was finished.")


@contextmanager
def heartbeats(reply: Reply, interval: float) -> Iterator[None]:
    """Send a comment line whenever an open stream was silent for `interval` seconds."""

    async def beat() -> None:
        while True:
            before = reply.writes
            await asyncio.sleep(interval)
            if reply.started and reply.writes == before:
                with suppress(ClientGone):  # the stream's own next write says so too
                    await reply.write(sse.HEARTBEAT)

    beating = asyncio.get_running_loop().create_task(beat())
    try:
        yield
    finally:
        beating.cancel()


def _take(services: Services, call: Call, event: Event) -> None:
    if call.served is None and call.execution is not None:
        call.served = call.execution.served
    call.answer.add(event)
    if isinstance(event, Delta):
        call.last_delta = services.clock()
        if call.first_delta is None:
            call.first_delta = call.last_delta


def _identity(services: Services, call: Call) -> Identity:
    return Identity(
        id=answer_id(call.endpoint, services.new_id()),
        created=int(call.started_at),
        model=call.model if call.served is None else call.served.model,
        endpoint=call.endpoint,
    )
