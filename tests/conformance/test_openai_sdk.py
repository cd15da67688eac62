"""The official SDK, sync and async, with nothing changed but its base_url."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from tests.fakes.gateway import Running, configured, running
from tests.fakes.upstream import FakeUpstream, Script, Stall, chat, chunk, failing

HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture
async def gateway(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(configured(tmp_path, upstream)) as gateway:
        yield gateway


@pytest.fixture
async def client(gateway: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        yield client


async def test_the_stream_helper_accumulates_to_the_whole_answer(
    client: openai.AsyncOpenAI, upstream: FakeUpstream
) -> None:
    upstream.answer(chat("Hel", "lo"))
    seen = []
    async with client.chat.completions.stream(
        model="first", messages=HELLO, stream_options={"include_usage": True}
    ) as stream:
        async for event in stream:
            seen.append(event.type)
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Hello"
    assert final.choices[0].finish_reason == "stop"
    assert final.usage is not None
    assert final.usage.total_tokens == 9
    assert "content.delta" in seen
    assert "content.done" in seen


class City(pydantic.BaseModel):
    name: str
    people: int


async def test_structured_output_is_asked_for_and_parsed(
    client: openai.AsyncOpenAI, upstream: FakeUpstream
) -> None:
    upstream.answer(chat('{"name":', '"Ulm","people":126000}'))
    answer = await client.chat.completions.parse(
        model="first", messages=HELLO, response_format=City
    )
    assert answer.choices[0].message.parsed == City(name="Ulm", people=126000)
    asked = upstream.received[0].body["response_format"]
    assert asked["json_schema"]["schema"]["required"] == ["name", "people"]


async def test_a_conversation_with_a_tool_goes_round(
    client: openai.AsyncOpenAI, upstream: FakeUpstream
) -> None:
    call = {"index": 0, "id": "call_1", "type": "function"}
    function = {"name": "people", "arguments": '{"city":"Ulm"}'}
    upstream.answer(
        Script(
            [
                chunk({"tool_calls": [{**call, "function": function}]}),
                chunk({}, "tool_calls"),
                b"data: [DONE]\n\n",
            ]
        ),
        chat("126000"),
    )
    first = await client.chat.completions.create(
        model="first",
        messages=HELLO,
        tools=[{"type": "function", "function": {"name": "people", "parameters": {}}}],
        tool_choice="auto",
    )
    message = first.choices[0].message
    assert message.tool_calls is not None
    second = await client.chat.completions.create(
        model="first",
        messages=[
            *HELLO,
            message.model_dump(),  # type: ignore[list-item]
            {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "126000"},
        ],
    )
    assert second.choices[0].message.content == "126000"
    sent = upstream.received[1].body["messages"]
    assert [turn["role"] for turn in sent] == ["user", "assistant", "tool"]
    assert sent[1]["tool_calls"][0]["function"] == function
    assert upstream.received[0].body["tools"][0]["function"]["name"] == "people"


async def test_the_sdk_retries_what_may_be_retried(
    client: openai.AsyncOpenAI, upstream: FakeUpstream
) -> None:
    upstream.answer(failing(429, headers={"retry-after": "0"}), chat("at last"))
    answer = await client.chat.completions.create(model="first", messages=HELLO)
    assert answer.choices[0].message.content == "at last"


async def test_leaving_a_stream_early_frees_the_upstream(
    client: openai.AsyncOpenAI, upstream: FakeUpstream, gateway: Running
) -> None:
    upstream.answer(Script([chunk({"content": "Hel"}), Stall()]))
    async with await client.chat.completions.create(
        model="first", messages=HELLO, stream=True
    ) as stream:
        async for part in stream:
            if part.choices[0].delta.content:
                break
    await upstream.received[0].left.wait()
    await gateway.idle()
    assert [record.status for record in await gateway.records()] == ["cancelled"]


async def test_a_client_side_timeout_frees_the_upstream(
    client: openai.AsyncOpenAI, upstream: FakeUpstream, gateway: Running
) -> None:
    upstream.answer(Script([Stall()]))
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.2, max_retries=0).chat.completions.create(
            model="first", messages=HELLO
        )
    await upstream.received[0].left.wait()
    await gateway.idle()
    assert [record.status for record in await gateway.records()] == ["cancelled"]


async def test_the_synchronous_client_does_all_of_it(
    gateway: Running, upstream: FakeUpstream
) -> None:
    upstream.answer(chat("Hel", "lo"))

    def use() -> list[str]:
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
            whole = client.chat.completions.create(model="first", messages=HELLO)
            with client.chat.completions.stream(model="first", messages=HELLO) as stream:
                for _ in stream:
                    pass
                streamed = stream.get_final_completion()
            names = [model.id for model in client.models.list()]
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(model="first", messages=HELLO, top_p=7)
            assert caught.value.param == "top_p"
            said = [whole.choices[0].message.content, streamed.choices[0].message.content]
            return [*names, json.dumps(said)]

    assert await asyncio.to_thread(use) == ["first", "smart", '["Hello", "Hello"]']
