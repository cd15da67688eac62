"""The provider against a real server that behaves well, badly, or not at all."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from headrace.config.schema import Timeouts, UpstreamProvider
from headrace.protocol.errors import (
    RateLimited,
    RefusedByUpstream,
    UpstreamError,
    UpstreamTimeout,
)
from headrace.protocol.generation import (
    Event,
    Finished,
    GenerationRequest,
    Message,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from headrace.providers import openai
from headrace.providers.openai import OpenAIProvider
from tests.fakes.upstream import (
    DONE,
    JSON,
    SSE,
    Cut,
    FakeUpstream,
    Gate,
    Script,
    Stall,
    chat,
    chunk,
    completions,
    failing,
    split,
    sse,
    usage_chunk,
)

KEY = "sk-hunter2"
REQUEST = GenerationRequest(
    endpoint="chat", model="asked", messages=(Message(role="user", content="hi"),)
)
HELLO = [
    TextDelta("Hello"),
    TextDelta(" world"),
    Finished("stop", Usage(prompt_tokens=7, completion_tokens=2)),
]


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as server:
        yield server


@asynccontextmanager
async def provider(
    upstream: FakeUpstream | str, key: str | None = KEY, connections: int = 8, **timeouts: float
) -> AsyncIterator[OpenAIProvider]:
    settings = UpstreamProvider(
        base_url=upstream if isinstance(upstream, str) else upstream.base_url,
        timeouts=Timeouts(**timeouts),
        max_connections=connections,
    )
    made = OpenAIProvider("up", settings, key, clock=lambda: 1_700_000_000.0)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def ask(
    made: OpenAIProvider, request: GenerationRequest = REQUEST, model: str = "theirs"
) -> list[Event]:
    return [event async for event in made.generate(request, model)]


async def answer(
    upstream: FakeUpstream, script: Script, request: GenerationRequest = REQUEST, **settings: Any
) -> list[Event]:
    upstream.answer(script)
    async with provider(upstream, **settings) as made:
        return await ask(made, request)


async def body_of(upstream: FakeUpstream, request: GenerationRequest) -> dict[str, Any]:
    script = chat("a") if request.endpoint == "chat" else completions("a")
    await answer(upstream, script, request)
    return upstream.received[-1].body


async def test_a_good_answer_comes_through(upstream: FakeUpstream) -> None:
    assert await answer(upstream, chat("Hello", " world")) == HELLO
    request = upstream.received[0]
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.body == {
        "model": "theirs",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_every_given_field_and_the_extra_ones_are_sent(upstream: FakeUpstream) -> None:
    tool = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    request = GenerationRequest(
        endpoint="chat",
        model="asked",
        messages=(
            Message(role="user", content=[{"type": "text", "text": "é"}], name="n"),
            Message(role="assistant", tool_calls=[tool], extra={"reasoning_content": "hm"}),
            Message(role="tool", content="3", tool_call_id="c1"),
        ),
        max_tokens=5,
        temperature=0.0,
        top_p=0.5,
        top_k=3,
        seed=0,
        stop=("x",),
        extra={
            "response_format": {"type": "json_object"},
            "stream_options": {"other": 1},
            "stream": False,
            "model": "evil",
        },
    )
    assert await body_of(upstream, request) == {
        "model": "theirs",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "é"}], "name": "n"},
            {"role": "assistant", "tool_calls": [tool], "reasoning_content": "hm"},
            {"role": "tool", "content": "3", "tool_call_id": "c1"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True, "other": 1},
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 3,
        "seed": 0,
        "stop": ["x"],
        "response_format": {"type": "json_object"},
    }


async def test_completions_go_to_their_own_path(upstream: FakeUpstream) -> None:
    request = GenerationRequest(endpoint="completions", model="m", prompt="Once", max_tokens=2)
    assert await answer(upstream, completions("a", "b"), request) == [
        TextDelta("a"),
        TextDelta("b"),
        Finished("stop", Usage(prompt_tokens=7, completion_tokens=2)),
    ]
    assert upstream.received[0].path == "/v1/completions"
    assert upstream.received[0].body["prompt"] == "Once"
    tokens = GenerationRequest(endpoint="completions", model="m", prompt=(1, 2))
    assert (await body_of(upstream, tokens))["prompt"] == [1, 2]


async def test_without_a_key_no_credentials_are_sent(upstream: FakeUpstream) -> None:
    async with provider(upstream, key=None) as made:
        assert await ask(made) == HELLO
    assert "authorization" not in upstream.received[0].headers


async def test_a_slash_at_the_end_of_the_address_does_not_matter(upstream: FakeUpstream) -> None:
    async with provider(upstream.base_url + "/") as made:
        await ask(made)
    assert upstream.received[0].path == "/v1/chat/completions"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_an_answer_cut_at_any_byte_is_the_same(upstream: FakeUpstream, size: int) -> None:
    whole = chat("Hé", "llo 🌍", " ñ")
    assert await answer(upstream, split(whole, size)) == await answer(upstream, whole)


async def test_comments_and_odd_line_ends_are_no_trouble(upstream: FakeUpstream) -> None:
    parts = [b": PROCESSING\n\n", *chat("Hello", " world").parts]
    crlf = [part.replace(b"\n", b"\r\n") for part in parts if isinstance(part, bytes)]
    assert await answer(upstream, Script(crlf)) == HELLO


async def test_a_plain_body_to_a_stream_request_is_taken(upstream: FakeUpstream) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    twin = {"type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    message = {"role": "assistant", "content": "Hello", "tool_calls": [call, twin]}
    body = {
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    events = await answer(upstream, Script([json.dumps(body).encode()], headers=JSON))
    assert events[0] == TextDelta("Hello")
    calls = [event for event in events if isinstance(event, ToolCallDelta)]
    assert [(call.index, call.name) for call in calls if call.id] == [(0, "f"), (1, "f")]
    assert events[-1] == Finished("tool_calls", Usage(prompt_tokens=1, completion_tokens=2))


async def test_an_error_in_a_plain_body_with_a_good_status_is_an_error(
    upstream: FakeUpstream,
) -> None:
    with pytest.raises(UpstreamError, match="it burns"):
        await answer(upstream, Script([b'{"error": {"message": "it burns"}}'], headers=JSON))


async def test_an_end_without_done_is_fine_after_a_finish_reason(upstream: FakeUpstream) -> None:
    whole = chat("Hello", " world").parts
    assert await answer(upstream, Script(whole[:-1])) == HELLO


async def test_the_blank_line_of_the_last_event_may_be_missing(upstream: FakeUpstream) -> None:
    last = sse({"choices": [{"delta": {}, "finish_reason": "stop"}]}).rstrip()
    events = await answer(upstream, Script([chunk({"content": "a"}), last]))
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize("ending", [Cut(), Stall()])
async def test_a_break_or_silence_after_a_finish_reason_loses_nothing(
    upstream: FakeUpstream, ending: Cut | Stall
) -> None:
    gate = Gate()
    upstream.answer(Script([chunk({"content": "a"}), chunk({}, "stop"), gate, ending]))
    async with provider(upstream, between_tokens=0.2) as made:
        events = made.generate(REQUEST, "m")
        assert await anext(events) == TextDelta("a")
        rest = asyncio.ensure_future(anext(events))
        await gate.reached.wait()
        for _ in range(100):  # what was written before the gate is read
            await asyncio.sleep(0.001)
        gate.opened.set()
        assert isinstance(await rest, Finished)
        await events.aclose()


@pytest.mark.parametrize(
    "parts",
    [
        [chunk({"content": "a"})],
        [chunk({"content": "a"}), DONE],
        [chunk({"content": "a"}), Cut()],
        [chunk({"content": "a"})[:-9], Cut()],
        [Cut()],
        [],
    ],
)
async def test_a_cut_answer_is_an_error_never_a_good_end(
    upstream: FakeUpstream, parts: Sequence[Any]
) -> None:
    with pytest.raises(UpstreamError):
        await answer(upstream, Script(parts))


async def test_what_came_before_a_cut_is_given(upstream: FakeUpstream) -> None:
    gate = Gate()
    upstream.answer(Script([chunk({"content": "a"}), gate, Cut()]))
    async with provider(upstream) as made, aclosing(made.generate(REQUEST, "m")) as events:
        assert await anext(events) == TextDelta("a")
        gate.opened.set()
        with pytest.raises(UpstreamError):
            await anext(events)


async def test_a_connection_cut_before_any_answer_is_an_error(upstream: FakeUpstream) -> None:
    with pytest.raises(UpstreamError, match="connection to provider 'up' failed"):
        await answer(upstream, Script(head=[Cut()]))


async def test_bytes_that_are_not_http_are_an_error(upstream: FakeUpstream) -> None:
    with pytest.raises(UpstreamError, match="connection") as caught:
        await answer(upstream, Script(head=[b"SSH-2.0-OpenSSH_9.2\r\n\r\n", Cut()]))
    assert KEY not in repr(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "script",
    [
        Script([b"data: {nonsense\n\n"]),
        Script([b"<html>"], headers={"content-type": "text/html"}),
        Script([b"hello"], headers={}),
        Script([b"{nonsense"], headers=JSON),
        Script([b"\x1f\x8b"], headers={**SSE, "content-encoding": "gzip"}),
        Script([b"{}"], status=201, headers=JSON),
        Script([], status=204),
        Script([sse({"error": {"message": "it burns"}})]),
    ],
)
async def test_nonsense_is_an_upstream_error(upstream: FakeUpstream, script: Script) -> None:
    with pytest.raises(UpstreamError) as caught:
        await answer(upstream, script)
    assert caught.value.status == 502


async def test_a_line_without_end_is_given_up(upstream: FakeUpstream) -> None:
    huge = [b"data: " + b"x" * 65536] + [b"x" * 65536] * 200
    with pytest.raises(UpstreamError, match="bytes"):
        await answer(upstream, Script(huge))


async def test_an_answer_without_end_is_given_up(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "MAX_ANSWER_BYTES", 100_000)
    with pytest.raises(UpstreamError, match="over 100000 bytes"):
        await answer(upstream, Script([chunk({"content": "x" * 1000})] * 1000))
    with pytest.raises(UpstreamError, match="over"):
        await answer(upstream, Script([b"[" * 1000] * 1000, headers=JSON))


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_a_refusal_reaches_the_caller_as_it_was_said(
    upstream: FakeUpstream, status: int
) -> None:
    with pytest.raises(RefusedByUpstream) as caught:
        await answer(upstream, failing(status, "x is wrong", param="x", code="bad_x"))
    error = caught.value
    assert (error.status, error.message, error.param, error.code) == (
        status,
        "x is wrong",
        "x",
        "bad_x",
    )


@pytest.mark.parametrize("status", [500, 502, 503, 529])
async def test_a_failing_upstream_is_an_upstream_error(upstream: FakeUpstream, status: int) -> None:
    with pytest.raises(UpstreamError) as caught:
        await answer(upstream, failing(status, "busy", {"retry-after": "3"}))
    assert (caught.value.upstream_status, caught.value.retry_after) == (status, 3.0)


@pytest.mark.parametrize("wait", ["30", "Tue, 14 Nov 2023 22:13:50 GMT"])
async def test_a_rate_limit_says_when_to_come_back(upstream: FakeUpstream, wait: str) -> None:
    with pytest.raises(RateLimited) as caught:
        await answer(upstream, failing(429, "slow down", {"retry-after": wait}))
    assert caught.value.retry_after == 30.0


@pytest.mark.parametrize(
    "script",
    [
        failing(401, f"Incorrect API key provided: {KEY}"),
        failing(403, f"{KEY} may not"),
        failing(400, f"the key {KEY} is for another model"),
        failing(500, f"could not look {KEY} up"),
        Script([sse({"error": {"message": f"{KEY} is over its budget"}})]),
    ],
)
async def test_our_key_is_in_no_error(upstream: FakeUpstream, script: Script) -> None:
    with pytest.raises((UpstreamError, RefusedByUpstream)) as caught:
        await answer(upstream, script)
    assert KEY not in str(caught.value)
    assert KEY not in repr(caught.value)
    assert KEY not in caught.value.message


async def test_our_key_is_not_in_the_providers_repr(upstream: FakeUpstream) -> None:
    async with provider(upstream) as made:
        assert KEY not in repr(made)


async def test_a_redirect_is_not_followed(upstream: FakeUpstream) -> None:
    async with FakeUpstream() as other:
        moved = Script([], 307, {"location": other.base_url + "/chat/completions"})
        with pytest.raises(UpstreamError, match="redirect"):
            await answer(upstream, moved)
        assert other.received == []


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
    monkeypatch.setattr(openai, "DRAIN", 5.0)
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
        with pytest.raises(UpstreamError, match="ClientConnectorError"):
            await ask(made)


async def test_a_host_that_does_not_exist_is_an_upstream_error() -> None:
    async with provider("http://no-such-host.invalid/v1") as made:
        with pytest.raises(UpstreamError, match="connection to provider 'up' failed"):
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
        assert made.ready()
        await made.close()
        assert not made.ready()
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


def test_the_newer_name_of_the_token_limit_goes_to_openai_itself() -> None:
    request = GenerationRequest(endpoint="chat", model="m", messages=(), max_tokens=5)

    def sent(base_url: str) -> dict[str, Any]:
        return openai.request_body(request, "m", base_url)

    assert sent("https://api.openai.com/v1")["max_completion_tokens"] == 5
    assert "max_tokens" not in sent("https://api.openai.com/v1")
    assert sent("https://openrouter.ai/api/v1")["max_tokens"] == 5


async def test_usage_in_the_last_chunk_is_waited_for(upstream: FakeUpstream) -> None:
    gate = Gate()
    upstream.answer(Script([chunk({"content": "a"}), chunk({}, "stop"), gate, usage_chunk(), DONE]))
    async with provider(upstream) as made:
        events = made.generate(REQUEST, "m")
        await anext(events)
        rest = asyncio.ensure_future(anext(events))
        await gate.reached.wait()
        assert not rest.done()
        gate.opened.set()
        assert await rest == Finished("stop", Usage(prompt_tokens=7, completion_tokens=2))
        await events.aclose()
