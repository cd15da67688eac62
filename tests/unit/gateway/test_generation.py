"""The official client gets from the gateway what it would get from OpenAI."""

from __future__ import annotations

import asyncio

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from tests.fakes.gateway import Running
from tests.fakes.upstream import FakeUpstream, Gate, Script, chat, chunk, completions, usage_chunk

HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Hi"}]
BODY = {"model": "first", "messages": HELLO}


async def test_a_whole_chat_answer_and_its_record(
    client: openai.AsyncOpenAI, first: FakeUpstream, gateway: Running
) -> None:
    first.answer(chat("Hel", "lo"))
    answer = await client.chat.completions.with_raw_response.create(
        model="first", messages=HELLO, max_completion_tokens=9
    )
    completion = answer.parse()
    assert completion.choices[0].message.content == "Hello"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "first"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 9
    assert answer.headers["x-headrace-provider"] == "up-first"
    assert answer.headers["x-headrace-model"] == "first"
    assert answer.headers["x-headrace-cache"] == "off"
    route = f"model:first@{gateway.app.services.version}"
    assert answer.headers["x-headrace-route"] == route
    assert first.received[0].body["model"] == "real-first"
    (record,) = await gateway.records()
    assert record.id == answer.headers["x-request-id"]
    assert (record.status, record.http_status, record.model) == ("ok", 200, "first")
    assert (record.tenant, record.route, record.provider) == ("default", "model:first", "up-first")
    assert record.input is not None
    assert record.input["messages"] == [{"role": "user", "content": "Hi"}]
    assert record.output == {"text": "Hello"}
    assert record.cost == pytest.approx((7 * 1.0 + 2 * 10.0) / 1e6)
    assert record.ttft is not None
    assert record.itl is not None
    assert 0 < record.ttft <= record.duration


async def test_a_streamed_chat_answer(client: openai.AsyncOpenAI, first: FakeUpstream) -> None:
    first.answer(chat("Zoë ", "日本", "!", finish="length"))
    stream = await client.chat.completions.create(model="first", messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Zoë 日本!"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in chunks)


async def test_reasoning_goes_out_under_its_own_name_and_is_on_the_record(
    client: openai.AsyncOpenAI, first: FakeUpstream, gateway: Running
) -> None:
    thinking = [chunk({"reasoning": "Hm, "}), chunk({"reasoning": "yes."})]
    first.answer(Script([*thinking, *chat("Yes").parts]))
    stream = await client.chat.completions.create(model="first", messages=HELLO, stream=True)
    deltas = [piece.choices[0].delta async for piece in stream]
    told = [(delta.model_extra or {}).get("reasoning_content") or "" for delta in deltas]
    assert "".join(told) == "Hm, yes."
    assert "".join(delta.content or "" for delta in deltas) == "Yes"
    first.answer(Script([*thinking, *chat("Yes").parts]))
    whole = await client.chat.completions.create(model="first", messages=HELLO)
    assert whole.choices[0].message.content == "Yes"
    assert (whole.choices[0].message.model_extra or {})["reasoning_content"] == "Hm, yes."
    for record in await gateway.records():
        assert record.output == {"text": "Yes", "reasoning": "Hm, yes."}


async def test_usage_comes_last_and_only_to_those_who_ask(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="first", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 7
    assert all(c.usage is None for c in chunks[:-1])


async def test_completions_whole_and_streamed(
    client: openai.AsyncOpenAI, first: FakeUpstream
) -> None:
    first.answer(completions("one ", "two"))
    whole = await client.completions.create(model="first", prompt="count", max_tokens=5)
    assert (whole.object, whole.choices[0].text) == ("text_completion", "one two")
    stream = await client.completions.create(model="first", prompt=[1, 2], stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].text for c in chunks) == "one two"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert first.received[1].body["prompt"] == [1, 2]


async def test_the_synchronous_client(first: FakeUpstream, gateway: Running) -> None:
    first.answer(chat("Hel", "lo"))

    def ask() -> tuple[str | None, str]:
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
            whole = client.chat.completions.create(model="first", messages=HELLO)
            stream = client.chat.completions.create(model="first", messages=HELLO, stream=True)
            text = "".join(c.choices[0].delta.content or "" for c in stream)
            return whole.choices[0].message.content, text

    assert await asyncio.to_thread(ask) == ("Hello", "Hello")


async def test_tool_calls_reach_the_client_whole_and_streamed(
    client: openai.AsyncOpenAI, first: FakeUpstream
) -> None:
    def call(index: int, arguments: str, **head: object) -> bytes:
        function = {"arguments": arguments, **({"name": head.pop("name")} if head else {})}
        delta = {"index": index, "function": function, **head}
        return chunk({"tool_calls": [delta]})

    first.answer(
        Script(
            [
                call(0, "", name="weather", id="call_a", type="function"),
                call(0, '{"city":'),
                call(1, "{}", name="time", id="call_b", type="function"),
                call(0, '"Ulm"}'),
                chunk({}, "tool_calls"),
                usage_chunk(),
                b"data: [DONE]\n\n",
            ]
        )
    )
    expected = [("call_a", "weather", '{"city":"Ulm"}'), ("call_b", "time", "{}")]
    whole = await client.chat.completions.create(model="first", messages=HELLO)
    message = whole.choices[0].message
    assert whole.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert [
        (c.id, c.function.name, c.function.arguments)
        for c in message.tool_calls or ()
        if c.type == "function"
    ] == expected

    built: dict[int, list[str]] = {}
    stream = await client.chat.completions.create(model="first", messages=HELLO, stream=True)
    async for part in stream:
        for piece in part.choices[0].delta.tool_calls or ():
            parts = built.setdefault(piece.index, ["", "", ""])
            assert piece.function is not None
            parts[0] += piece.id or ""
            parts[1] += piece.function.name or ""
            parts[2] += piece.function.arguments or ""
    assert [tuple(parts) for parts in built.values()] == expected


async def test_a_call_is_on_record_before_its_end_is_seen(
    first: FakeUpstream, gateway: Running
) -> None:
    gate = Gate()
    first.answer(Script([chunk({"content": "a"}), gate, chunk({}, "stop"), b"data: [DONE]\n\n"]))
    seen: list[bytes] = []
    written = gateway.app.services.metrics.render

    async with gateway.post({**BODY, "stream": True}) as response:
        async for line in response.content:
            if b'"a"' in line:
                assert b"headrace_calls_total{" not in written()
                gate.opened.set()
            if b'"finish_reason":"stop"' in line:
                assert b"headrace_calls_total{" in written()
            seen.append(line)
    assert seen[-2] == b"data: [DONE]\n"


async def test_a_stream_has_headers_that_keep_proxies_from_holding_it(gateway: Running) -> None:
    async with gateway.post({**BODY, "stream": True}) as response:
        await response.read()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "no-cache" in response.headers["cache-control"]
    assert response.headers["x-accel-buffering"] == "no"


async def test_a_callers_request_id_is_kept_once(gateway: Running) -> None:
    ids = []
    for asked in ("mine-1", "mine-1", "x" * 65, "two words"):
        async with gateway.post(BODY, x_request_id=asked) as response:
            ids.append(response.headers["x-request-id"])
    assert ids[0] == "mine-1"
    assert all(own.startswith("req_") for own in ids[1:])
    assert [record.id for record in await gateway.records()] == ids


async def test_cached_tokens_are_priced_once(first: FakeUpstream, gateway: Running) -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "total_tokens": 110,
        "prompt_tokens_details": {"cached_tokens": 60},
    }
    first.answer(chat("x", usage=usage))
    async with gateway.post(BODY) as response:
        answer = await response.json()
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 60
    (record,) = await gateway.records()
    assert record.cost == pytest.approx((40 * 1.0 + 60 * 0.5 + 10 * 10.0) / 1e6)


async def test_a_silent_stream_is_kept_alive_after_its_first_event(
    first: FakeUpstream, quick_heartbeat: Running
) -> None:
    gate = Gate()
    first.answer(Script([chunk({"content": "a"}), gate, chunk({}, "stop"), b"data: [DONE]\n\n"]))
    async with quick_heartbeat.post({**BODY, "stream": True}) as response:
        comments = 0
        async for line in response.content:
            comments += line.startswith(b":")
            if comments == 3:
                gate.opened.set()
    assert comments >= 3
    assert line == b"\n"
