"""The server stops as it should: no call is cut without a word, none is missing on record."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

from tests.fakes.gateway import configured, running
from tests.fakes.upstream import FakeUpstream, Gate, Part, Script, Stall, chunk

BODY = {"model": "first", "messages": [{"role": "user", "content": "Hi"}]}


async def test_a_stop_waits_for_a_running_stream(tmp_path: Path) -> None:
    gate = Gate()
    async with FakeUpstream() as upstream:
        parts: list[Part] = [
            chunk({"content": "Hel"}),
            gate,
            chunk({"content": "lo"}),
            chunk({}, "stop"),
        ]
        upstream.answer(Script([*parts, b"data: [DONE]\n\n"]))
        async with running(configured(tmp_path, upstream)) as gateway:
            async with gateway.post({**BODY, "stream": True}) as response:
                gateway.server.should_exit = True
                while gateway.server.servers[0].is_serving():
                    await asyncio.sleep(0)
                gate.opened.set()
                text = await response.text()
            assert text.endswith("data: [DONE]\n\n")
            assert [record.status for record in await gateway.records()] == ["ok"]


async def test_a_stream_that_outlives_the_grace_ends_with_an_error_event(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        upstream.answer(Script([chunk({"content": "Hel"}), Stall()]))
        async with running(configured(tmp_path, upstream), grace=0) as gateway:
            async with gateway.post({**BODY, "stream": True}) as response:
                gateway.server.should_exit = True
                events = (await response.text()).split("\n\n")
            error = json.loads(events[-2].removeprefix("data: "))["error"]
            assert "shutting down" in error["message"]
            assert "[DONE]" not in "".join(events)
            assert upstream.received[0].left.is_set()
            (record,) = await gateway.records()
            assert (record.status, record.error_code) == ("error", "overloaded")


async def test_a_call_that_has_not_begun_to_answer_is_told_to_come_back(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        upstream.answer(Script([Stall()]))
        async with running(configured(tmp_path, upstream), grace=0) as gateway:
            posting = asyncio.ensure_future(
                gateway.http.post(f"{gateway.url}/v1/chat/completions", json=BODY)
            )
            await upstream.arrived()
            gateway.server.should_exit = True
            async with await posting as response:
                assert response.status == 503
                assert response.headers["retry-after"] == "1"


async def test_a_stopped_gateway_listens_no_more(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream, running(configured(tmp_path, upstream)) as gateway:
        port = gateway.port
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
