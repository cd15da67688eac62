"""Connections: reused, waited for with time-outs, and freed when nobody wants them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest

from headrace.protocol.errors import UpstreamError, UpstreamTimeout
from headrace.protocol.generation import TextDelta
from headrace.providers import upstream as upstream_module
from tests.fakes.upstream import JSON, SSE, FakeUpstream, Gate, Script, Stall, chat, chunk
from tests.unit.providers.calling import HELLO, REQUEST, answer, ask, provider


async def test_a_proxy_of_the_environment_is_not_used(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert await answer(upstream, chat("Hello", " world")) == HELLO


async def test_cookies_of_one_answer_are_not_sent_with_the_next_call(
    upstream: FakeUpstream,
) -> None:
    good = chat("a")
    upstream.answer(Script(good.parts, headers={**SSE, "set-cookie": "who=alice"}))
    async with provider(upstream.base_url.replace("127.0.0.1", "localhost")) as made:
        await ask(made)
        await ask(made)
    assert "cookie" not in upstream.received[1].headers


async def test_an_end_shortly_after_done_keeps_the_connection(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_module, "DRAIN", 5.0)
    gate = Gate()
    upstream.answer(Script([*chat("Hello", " world").parts, gate]), chat("Hello", " world"))
    async with provider(upstream) as made:
        first = asyncio.ensure_future(ask(made))
        await gate.reached.wait()
        gate.opened.set()
        assert await first == HELLO
        assert await ask(made) == HELLO
    assert [request.connection for request in upstream.received] == [0, 0]


async def test_an_upstream_that_never_ends_after_done_is_left(upstream: FakeUpstream) -> None:
    assert await answer(upstream, Script([*chat("Hello", " world").parts, Stall()])) == HELLO
    await asyncio.wait_for(upstream.received[0].left.wait(), 5)


async def test_a_connection_serves_call_after_call(upstream: FakeUpstream) -> None:
    async with provider(upstream) as made:
        for _ in range(3):
            await ask(made)
    assert [request.connection for request in upstream.received] == [0, 0, 0]


async def test_nobody_listening_is_an_upstream_error(free_port: int) -> None:
    async with provider(f"http://127.0.0.1:{free_port}/v1") as made:
        with pytest.raises(UpstreamError, match="ConnectionRefusedError"):
            await ask(made)


async def test_a_host_that_does_not_exist_is_an_upstream_error() -> None:
    async with provider("http://no-such-host.invalid/v1", connect=2) as made:
        with pytest.raises((UpstreamError, UpstreamTimeout), match="rovider 'up'"):
            await ask(made)


async def test_connect_time_out() -> None:
    """A listener whose queue is full answers no handshake."""
    with socket.socket() as listener, socket.socket() as filler, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for each in (filler, second):
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        async with provider(address, connect=0.2) as made:
            with pytest.raises(UpstreamTimeout, match=r"0\.2 s \(connect\)"):
                await ask(made)


@pytest.mark.parametrize(
    "script",
    [
        Script(head=[Stall()]),
        Script([Stall()]),
        Script([chunk({"role": "assistant", "content": ""}), Stall()]),
        Script([b'{"choices": ', Stall()], headers=JSON),
    ],
)
async def test_first_token_time_out(upstream: FakeUpstream, script: Script) -> None:
    with pytest.raises(UpstreamTimeout, match=r"0\.2 s \(first_token\)"):
        await answer(upstream, script, first_token=0.2)
    await asyncio.wait_for(upstream.received[0].left.wait(), 5)


async def test_comments_do_not_count_as_a_first_token(upstream: FakeUpstream) -> None:
    class Ticking(Sequence[bytes]):
        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, index: Any) -> Any:
            return b": tick\n\n"

    with pytest.raises(UpstreamTimeout, match="first_token"):
        await answer(upstream, Script(Ticking()), first_token=0.2)


async def test_between_tokens_time_out(upstream: FakeUpstream) -> None:
    upstream.answer(Script([chunk({"content": "a"}), Stall()]))
    async with provider(upstream, between_tokens=0.2) as made:
        events = made.generate(REQUEST, "m")
        assert await anext(events) == TextDelta("a")
        with pytest.raises(UpstreamTimeout, match=r"0\.2 s \(between_tokens\)"):
            await anext(events)
    await asyncio.wait_for(upstream.received[0].left.wait(), 5)


async def test_reasoning_counts_as_a_sign_of_life(upstream: FakeUpstream) -> None:
    script = Script([chunk({"reasoning_content": "hm"}), Stall()])
    with pytest.raises(UpstreamTimeout, match="between_tokens"):
        await answer(upstream, script, first_token=30, between_tokens=0.2)


async def test_a_slow_reader_is_not_the_upstreams_fault(upstream: FakeUpstream) -> None:
    gate = Gate()
    upstream.answer(Script([chunk({"content": "a"}), gate, *chat("b").parts]))
    async with (
        provider(upstream, between_tokens=0.3, first_token=0.3) as made,
        aclosing(made.generate(REQUEST, "m")) as events,
    ):
        assert await anext(events) == TextDelta("a")
        await asyncio.sleep(0.5)  # longer than any time-out
        gate.opened.set()
        assert await anext(events) == TextDelta("b")


async def test_pool_time_out_and_a_connection_that_becomes_free(upstream: FakeUpstream) -> None:
    upstream.answer(Script([chunk({"content": "a"}), Stall()]), chat("Hello", " world"))
    async with provider(upstream, connections=1, pool=0.2) as made:
        first = made.generate(REQUEST, "m")
        await anext(first)
        with pytest.raises(UpstreamTimeout, match=r"0\.2 s \(pool\)"):
            await ask(made)
        await first.aclose()
        assert await ask(made) == HELLO


async def test_a_caller_that_closes_frees_the_upstream_at_once(upstream: FakeUpstream) -> None:
    upstream.answer(Script([chunk({"content": "a"}), Stall()]))
    async with provider(upstream) as made:
        events = made.generate(REQUEST, "m")
        await anext(events)
        await events.aclose()
        await asyncio.wait_for(upstream.received[0].left.wait(), 1)


@pytest.mark.parametrize("script", [Script(head=[Stall()]), Script([Stall()])])
async def test_a_caller_cancelled_before_the_first_token_frees_the_upstream(
    upstream: FakeUpstream, script: Script
) -> None:
    upstream.answer(script)
    async with provider(upstream, connections=1) as made:
        task = asyncio.ensure_future(ask(made))
        request = await upstream.arrived()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(request.left.wait(), 1)
        upstream.answer(chat("Hello", " world"))
        assert await ask(made) == HELLO


async def test_closing_the_provider_fails_what_runs(upstream: FakeUpstream) -> None:
    upstream.answer(Script([chunk({"content": "a"}), Stall()]))
    async with provider(upstream) as made:
        events = made.generate(REQUEST, "m")
        await anext(events)
        assert made.ready("m")
        await made.close()
        assert not made.ready("m")
        with pytest.raises(UpstreamError):
            await anext(events)
        with pytest.raises(UpstreamError, match="not running"):
            await ask(made)


async def test_many_calls_share_few_connections(upstream: FakeUpstream) -> None:
    async with provider(upstream, connections=4, pool=30) as made:
        answers = await asyncio.gather(*(ask(made) for _ in range(200)))
    assert all(events == HELLO for events in answers)
    assert {request.connection for request in upstream.received} <= {0, 1, 2, 3}


async def test_calls_broken_off_at_every_moment_leave_no_connection_taken(
    upstream: FakeUpstream,
) -> None:
    async with provider(upstream, connections=2, pool=5) as made:
        for steps in range(60):
            task = asyncio.ensure_future(ask(made))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        for events in await asyncio.gather(ask(made), ask(made)):
            assert events == HELLO
