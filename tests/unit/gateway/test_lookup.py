"""Equal requests get equal answers once: stored, shared, and never by mistake."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace.config.schema import Cache
from tests.fakes.gateway import CHAT, Running, configured, running
from tests.fakes.upstream import (
    Cut,
    FakeUpstream,
    Gate,
    Part,
    Script,
    chat,
    chunk,
    failing,
    usage_chunk,
)

ASKED: dict[str, Any] = {"model": "smart", "messages": [{"role": "user", "content": "Hi"}]}
FIXED = {**ASKED, "temperature": 0}


def gated(gate: Gate) -> Script:
    parts: list[Part] = [chunk({"content": "Hel"}), gate, chunk({"content": "lo"})]
    return Script([*parts, chunk({}, "stop"), usage_chunk(), b"data: [DONE]\n\n"])


async def ask(gateway: Running, body: object, **headers: str) -> tuple[str, str]:
    """The answer's text, and what the cache did."""
    async with gateway.post(body, **headers) as response:
        return text_of(await response.text()), response.headers["x-headrace-cache"]


def text_of(body: str) -> str:
    if body.startswith("{"):
        content = json.loads(body)["choices"][0]["message"]["content"]
        assert isinstance(content, str)
        return content
    assert body.endswith("data: [DONE]\n\n")
    chunks = [json.loads(line[6:]) for line in body.split("\n\n") if line.startswith("data: {")]
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])


@pytest.mark.parametrize(
    ("body", "headers", "outcomes"),
    [
        (FIXED, {}, ["miss", "hit"]),
        ({**ASKED, "seed": 7}, {}, ["miss", "hit"]),
        (ASKED, {}, ["off", "off"]),
        (ASKED, {"x_headrace_cache": "on"}, ["miss", "hit"]),
        (FIXED, {"x_headrace_cache": "off"}, ["off", "off"]),
    ],
    ids=["temperature 0", "seed", "random", "random, asked for", "bypassed"],
)
async def test_which_calls_are_answered_from_the_cache(
    gateway: Running,
    first: FakeUpstream,
    body: object,
    headers: dict[str, str],
    outcomes: list[str],
) -> None:
    assert [(await ask(gateway, body, **headers))[1] for _ in outcomes] == outcomes
    assert len(first.received) == (1 if "hit" in outcomes else 2)


async def test_a_hit_replays_as_stream_or_whole_with_an_identity_of_its_own(
    gateway: Running, first: FakeUpstream
) -> None:
    first.answer(chat("Hel", "lo"))
    async with gateway.post(FIXED) as response:
        miss = await response.json()
    async with gateway.post(FIXED) as response:
        hit = await response.json()
        assert response.headers["x-headrace-model"] == "first"
    assert hit["choices"] == miss["choices"]
    assert hit["usage"] == miss["usage"]
    assert hit["id"] != miss["id"]
    assert await ask(gateway, {**FIXED, "stream": True}) == ("Hello", "hit")
    records = await gateway.records()
    assert [record.cache for record in records] == ["miss", "hit", "hit"]
    assert [(record.cost or 0) > 0 for record in records] == [True, False, False]
    assert [len(record.attempts) for record in records] == [1, 0, 0]
    assert records[1].prompt_tokens == 7
    assert records[1].provider == "up-first"


TOOL_CALL = Script(
    [
        chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]}),
        chunk({}, "tool_calls"),
        b"data: [DONE]\n\n",
    ]
)


@pytest.mark.parametrize(
    "script",
    [
        chat("x", finish="content_filter"),
        Script([chunk({"content": "x"}), Cut()]),
        TOOL_CALL,
        failing(400, code="content_policy"),
    ],
    ids=["filtered", "cut", "tool call", "error"],
)
async def test_what_is_not_a_good_answer_is_not_stored(
    gateway: Running, first: FakeUpstream, script: Script
) -> None:
    first.answer(script)
    for _ in range(2):
        async with gateway.post({**FIXED, "stream": True}) as response:
            await response.read()
            assert response.headers["x-headrace-cache"] == "miss"
    assert len(first.received) == 2


async def test_a_tool_call_is_stored_for_one_who_asks_for_it(
    gateway: Running, first: FakeUpstream
) -> None:
    first.answer(TOOL_CALL)
    calls = []
    for _ in range(2):
        async with gateway.post(FIXED, x_headrace_cache="on") as response:
            calls.append((await response.json())["choices"][0]["message"]["tool_calls"])
    assert response.headers["x-headrace-cache"] == "hit"
    assert calls[0] == calls[1]
    assert calls[0][0]["function"]["name"] == "f"
    async with gateway.post(FIXED) as response:
        assert response.headers["x-headrace-cache"] == "miss"


async def test_an_answer_of_a_fallback_is_not_stored_in_the_first_ones_place(
    gateway: Running, first: FakeUpstream
) -> None:
    first.answer(failing(500), chat("from the first"))
    await ask(gateway, FIXED)
    assert await ask(gateway, FIXED) == ("from the first", "miss")


async def test_another_request_is_another_answer(gateway: Running, first: FakeUpstream) -> None:
    await ask(gateway, FIXED)
    for change in ({"max_tokens": 5}, {"model": "first"}, {"user": "b"}, {"top_p": 0.5}):
        assert (await ask(gateway, {**FIXED, **change}))[1] == "miss"


async def test_a_disabled_cache_stores_and_shares_nothing(
    first: FakeUpstream, tmp_path: Path
) -> None:
    settings = configured(tmp_path, first, cache=Cache(enabled=False))
    async with running(settings) as gateway:
        for _ in range(2):
            assert (await ask(gateway, FIXED))[1] == "off"
    assert len(first.received) == 2


async def test_equal_calls_at_the_same_time_share_one_execution(
    gateway: Running, first: FakeUpstream
) -> None:
    gate = Gate()
    first.answer(gated(gate))
    leader = asyncio.create_task(ask(gateway, FIXED))
    await gate.reached.wait()
    followers = [await join(gateway) for _ in range(3)]
    gate.opened.set()
    assert await leader == ("Hello", "miss")
    for follower in followers:
        assert text_of(await follower.text()) == "Hello"
        assert follower.headers["x-headrace-cache"] == "shared"
        assert follower.headers["x-headrace-model"] == "first"
    assert len(first.received) == 1
    records = await gateway.records()
    assert sum((record.cost or 0) > 0 for record in records) == 1
    assert {record.provider for record in records} == {"up-first"}


@pytest.mark.parametrize("leaves", ["leader", "follower"])
async def test_one_who_hangs_up_does_not_end_it_for_the_others(
    gateway: Running, first: FakeUpstream, leaves: str
) -> None:
    gate = Gate()
    first.answer(gated(gate))
    leader = await join(gateway)
    follower = await join(gateway)
    gone, stays = (leader, follower) if leaves == "leader" else (follower, leader)
    gone.close()
    await running_calls(gateway, 1)
    gate.opened.set()
    assert text_of(await stays.text()) == "Hello"
    assert stays.headers["x-headrace-cache"] == ("shared" if leaves == "leader" else "miss")
    assert not first.received[0].left.is_set()
    records = await gateway.records()
    assert sorted(record.status for record in records) == ["cancelled", "ok"]
    assert [record.status for record in records if (record.cost or 0) > 0] == ["ok"]


async def test_the_last_one_to_hang_up_stops_it(gateway: Running, first: FakeUpstream) -> None:
    first.answer(gated(Gate()))
    leader, follower = await join(gateway), await join(gateway)
    leader.close()
    follower.close()
    await first.received[0].left.wait()
    await gateway.idle()
    assert len(gateway.app.services.flights) == 0
    assert [record.status for record in await gateway.records()] == ["cancelled"] * 2
    first.answer(chat("anew"))
    assert await ask(gateway, FIXED) == ("anew", "miss")


async def test_an_execution_that_breaks_breaks_for_all_who_share_it(
    gateway: Running, first: FakeUpstream
) -> None:
    gate = Gate()
    first.answer(Script([chunk({"content": "Hel"}), gate, Cut()]))
    both = [await join(gateway), await join(gateway)]
    gate.opened.set()
    for response in both:
        last = (await response.text()).split("\n\n")[-2]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "upstream_error"
    assert [record.status for record in await gateway.records()] == ["error"] * 2


async def test_a_wrong_cache_header_is_said_to_be_wrong(gateway: Running) -> None:
    async with gateway.post(FIXED, x_headrace_cache="maybe") as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "x-headrace-cache"


async def join(gateway: Running) -> aiohttp.ClientResponse:
    """Stream the deterministic request; returns when the first event came, so it runs."""
    return await gateway.http.post(gateway.url + CHAT, json={**FIXED, "stream": True})


async def running_calls(gateway: Running, count: int) -> None:
    """Wait until `count` calls run."""
    async with asyncio.timeout(5):
        while gateway.app.services.admission.running != count:
            await asyncio.sleep(0)
