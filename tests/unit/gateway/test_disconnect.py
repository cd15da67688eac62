"""Whoever hangs up, whenever, stops what was done for him."""

from __future__ import annotations

import asyncio
import fcntl
import json
from array import array

import pytest

from headrace.gateway.connection import MAX_UNSENT_BYTES
from tests.fakes.gateway import Running
from tests.fakes.upstream import FakeUpstream, Gate, Script, Stall, chat, chunk

SIOCOUTQNSD = 0x894B  # how much of what was written has not been sent (Linux)
BODY = {"model": "first", "messages": [{"role": "user", "content": "Hi"}]}


def raw(body: object, announced: int | None = None) -> bytes:
    """A request as bytes; `announced` is a content length that need not be true."""
    content = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
        "content-type: application/json\r\n"
        f"content-length: {len(content) if announced is None else announced}\r\n\r\n"
    )
    return head.encode() + content


async def connect(gateway: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", gateway.port)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


PHASES = {
    "before the head": Script(head=[Stall()]),
    "before the first token": Script([chunk({"role": "assistant"}), Stall()]),
    "after the first token": Script([chunk({"content": "Hel"}), Stall()]),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("script", PHASES.values(), ids=PHASES)
async def test_hanging_up_stops_the_upstream_and_the_record_says_cancelled(
    gateway: Running, first: FakeUpstream, second: FakeUpstream, script: Script, stream: bool
) -> None:
    first.answer(script)
    reader, writer = await connect(gateway)
    writer.write(raw({**BODY, "model": "smart", "stream": stream}))
    request = await first.arrived()
    if stream and script is PHASES["after the first token"]:
        await reader.readuntil(b"Hel")
    await hang_up(writer)
    await request.left.wait()
    await gateway.idle()
    assert second.received == []
    (record,) = await gateway.records()
    assert record.status == "cancelled"
    assert record.finish_reason is None
    assert [attempt.error_code for attempt in record.attempts] == ["cancelled"]
    # The upstream bills what it read, and what it wrote until it noticed.
    (attempt,) = record.attempts
    assert attempt.usage is not None
    assert attempt.usage.provenance == record.usage_provenance == "estimated"
    assert attempt.usage.prompt_tokens == record.prompt_tokens > 0
    assert attempt.cost == record.cost != 0
    assert gateway.app.services.router.health.cooling() == {}


async def test_any_number_of_clients_that_hang_up_say_nothing_of_the_upstream(
    gateway: Running, first: FakeUpstream
) -> None:
    first.answer(PHASES["after the first token"])
    for count in range(1, 13):
        reader, writer = await connect(gateway)
        writer.write(raw({**BODY, "stream": True, "temperature": 0}))
        await reader.readuntil(b"Hel")
        await hang_up(writer)
        await first.received[count - 1].left.wait()
        await gateway.idle()
    assert gateway.app.services.router.health.illnesses() == []
    assert {record.cache for record in await gateway.records()} == {"miss"}  # nothing was kept


async def test_hanging_up_in_the_middle_of_the_body(gateway: Running, first: FakeUpstream) -> None:
    _, writer = await connect(gateway)
    writer.write(raw(BODY, announced=1000))
    await writer.drain()
    async with asyncio.timeout(5):
        while gateway.app.services.admission.running == 0:
            await asyncio.sleep(0)
    await hang_up(writer)
    await gateway.idle()
    assert first.received == []
    assert [record.status for record in await gateway.records()] == ["cancelled"]


async def test_a_connection_serves_the_next_call_after_an_answer(
    gateway: Running, first: FakeUpstream
) -> None:
    first.answer(chat("one"), chat("two"))
    reader, writer = await connect(gateway)
    for text in (b"one", b"two"):
        writer.write(raw(BODY))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert text in await reader.readexactly(length)
    await hang_up(writer)
    assert [record.status for record in await gateway.records()] == ["ok", "ok"]


async def test_a_client_that_does_not_read_holds_the_upstream_and_not_the_memory(
    gateway: Running, first: FakeUpstream
) -> None:
    piece = chunk({"content": "x" * 60_000})
    end = Gate()
    first.answer(Script([*[piece] * 600, end, chunk({}, "stop"), b"data: [DONE]\n\n"]))
    reader, writer = await connect(gateway)
    writer.write(raw({**BODY, "stream": True}))
    await reader.readuntil(b"xxx")  # and then no more
    (await first.arrived()).left.clear()
    async with asyncio.timeout(20):
        (call,) = await _settled(gateway)
    assert call < 1_000_000
    (connection,) = gateway.server.server_state.connections
    unsent = array("i", [0])
    fcntl.ioctl(connection.transport.get_extra_info("socket").fileno(), SIOCOUTQNSD, unsent)
    assert unsent[0] <= 2 * MAX_UNSENT_BYTES
    assert not end.reached.is_set()
    await hang_up(writer)
    await gateway.idle()
    assert [record.status for record in await gateway.records()] == ["cancelled"]


async def _settled(gateway: Running) -> tuple[int]:
    """Wait until nothing is sent any more; the bytes that wait in the server's own buffer."""
    before = -1
    while True:
        await asyncio.sleep(0.2)
        (connection,) = gateway.server.server_state.connections
        waiting = connection.transport.get_write_buffer_size()
        if waiting == before and waiting > 0:
            return (waiting,)
        before = waiting
