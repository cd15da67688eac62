"""OpenAI's Responses through its official SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from headrace.config.schema import Configuration, Log, Model
from headrace.gateway.key_admin import NewKey
from tests.conformance.conftest import upstreams
from tests.conformance.test_anthropic_sdk import (
    parallel_of_anthropic,
    parallel_of_openai,
)
from tests.fakes.gateway import Running, running
from tests.fakes.upstream import Cut, FakeUpstream, Script, chat, chunk, failing

TOOL: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object"},
    "strict": False,
}


@pytest.fixture
async def client(gateway: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


@pytest.mark.parametrize("model", ["gpt", "claude"])
async def test_a_response_is_whole_or_streamed(client: openai.AsyncOpenAI, model: str) -> None:
    whole = await client.responses.create(model=model, input="Hi", max_output_tokens=9)
    assert (whole.status, whole.output_text) == ("completed", "Hello world")
    assert whole.usage is not None
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (7, 2)
    async with client.responses.stream(model=model, input="Hi") as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert final.output_text == "Hello world"
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds.count("response.output_text.delta") == 2
    assert kinds[-1] == "response.completed"


async def test_the_events_of_a_stream_are_numbered_in_order(client: openai.AsyncOpenAI) -> None:
    stream = await client.responses.create(model="gpt", input="Hi", stream=True)
    numbers = [event.sequence_number async for event in stream]
    assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("model", ["gpt", "claude"])
async def test_parallel_calls_keep_their_ids_names_and_arguments(
    client: openai.AsyncOpenAI,
    claude: FakeUpstream,
    gpt: FakeUpstream,
    model: str,
    streamed: bool,
) -> None:
    claude.answer(parallel_of_anthropic())
    gpt.answer(parallel_of_openai())
    asked: Any = {"model": model, "input": "Hi", "tools": [TOOL]}
    if streamed:
        async with client.responses.stream(**asked) as stream:
            answer: Any = await stream.get_final_response()
    else:
        answer = await client.responses.create(**asked)
    text, *calls = answer.output
    assert text.content[0].text == "Let me see."
    found = [(call.call_id, call.name, call.arguments.replace(" ", "")) for call in calls]
    assert found == [
        ("toolu_1", "weather", '{"city":"Ulm"}'),
        ("toolu_2", "weather", '{"city":"Bonn"}'),
        ("toolu_3", "now", "{}"),
    ]


async def test_a_conversation_goes_on_from_its_last_response(
    client: openai.AsyncOpenAI, gpt: FakeUpstream, gateway: Running
) -> None:
    gpt.answer(parallel_of_openai(), chat("Rain."))
    first = await client.responses.create(
        model="gpt", input="Weather?", instructions="Be brief.", tools=[TOOL]
    )
    outputs: Any = [
        {"type": "function_call_output", "call_id": f"toolu_{n}", "output": "rain"}
        for n in (1, 2, 3)
    ]
    second = await client.responses.create(
        model="gpt", input=outputs, previous_response_id=first.id, instructions="Be long."
    )
    assert second.output_text == "Rain."
    assert second.previous_response_id == first.id
    sent = gpt.received[1].body["messages"]
    assert [turn["role"] for turn in sent] == ["developer", "user", "assistant", *["tool"] * 3]
    assert [sent[0]["content"], sent[1]["content"]] == ["Be long.", "Weather?"]
    assert [call["id"] for call in sent[2]["tool_calls"]] == ["toolu_1", "toolu_2", "toolu_3"]
    again = await client.responses.retrieve(first.id)
    assert again.output == first.output


@pytest.mark.parametrize("streamed", [True, False])
async def test_what_is_not_to_be_stored_is_not(client: openai.AsyncOpenAI, streamed: bool) -> None:
    asked: Any = {"model": "gpt", "input": "Hi", "store": False}
    if streamed:
        async with client.responses.stream(**asked) as stream:
            first: Any = await stream.get_final_response()
    else:
        first = await client.responses.create(**asked)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError, match="no response"):
        await client.responses.create(model="gpt", input="x", previous_response_id=first.id)


async def test_a_deleted_response_is_gone(client: openai.AsyncOpenAI) -> None:
    first = await client.responses.create(model="gpt", input="Hi")
    await client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)


async def test_what_a_response_answers_can_be_listed(
    client: openai.AsyncOpenAI, gpt: FakeUpstream
) -> None:
    gpt.answer(parallel_of_openai(), chat("Rain."))
    first = await client.responses.create(
        model="gpt", input="Weather?", instructions="Be brief.", tools=[TOOL]
    )
    output: Any = [{"type": "function_call_output", "call_id": "toolu_1", "output": "rain"}]
    second = await client.responses.create(model="gpt", input=output, previous_response_id=first.id)
    listed = client.responses.input_items.list(second.id, limit=2, order="asc")
    items: list[Any] = [item async for item in listed]  # page by page
    assert [item.type for item in items] == [
        "message", "message", *["function_call"] * 3, "function_call_output",
    ]  # fmt: skip
    assert items[0].content[0].text == "Weather?"
    assert items[2].arguments.replace(" ", "") == '{"city":"Ulm"}'
    assert items[-1].output == "rain"
    newest = await client.responses.input_items.list(second.id, limit=1)
    assert newest.data[0].type == "function_call_output"


async def test_a_response_is_its_keys_alone(client: openai.AsyncOpenAI, gateway: Running) -> None:
    keyring = gateway.app.services.keyring
    store = keyring.opened()
    secrets = [store.create(NewKey(name=name).key())[1] for name in ("one", "two")]
    keyring.refresh()
    one, two = (client.with_options(api_key=secret) for secret in secrets)
    first = await one.responses.create(model="gpt", input="Hi")
    asked: Any = {"model": "gpt", "input": "x", "previous_response_id": first.id}
    for call in (
        two.responses.retrieve(first.id),
        two.responses.delete(first.id),
        two.responses.input_items.list(first.id),
        two.responses.create(**asked),
    ):
        with pytest.raises(openai.NotFoundError, match="no response"):
            await call
    await one.responses.create(**asked)
    await one.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await one.responses.create(**asked)


async def test_a_conversation_goes_on_after_a_restart(
    claude: FakeUpstream, gpt: FakeUpstream, tmp_path: Path
) -> None:
    id = None
    for said in ("My name is Ada.", "What is my name?"):
        async with (
            running(upstreams(tmp_path, claude, gpt)) as gateway,
            openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client,
        ):
            answer = await client.responses.create(model="gpt", input=said, previous_response_id=id)
            id = answer.id
    told = [turn["content"] for turn in gpt.received[1].body["messages"]]
    assert told == ["My name is Ada.", "Hello world", "What is my name?"]


async def test_a_cut_stream_ends_as_failed(client: openai.AsyncOpenAI, gpt: FakeUpstream) -> None:
    gpt.answer(Script([chunk({"content": "Hel"}), Cut()]))
    stream = await client.responses.create(model="gpt", input="Hi", stream=True)
    events: list[Any] = [event async for event in stream]
    assert events[-1].type == "response.failed"
    assert events[-1].response.status == "failed"
    assert events[-1].response.error.message
    assert "response.completed" not in [event.type for event in events]
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(events[0].response.id)


async def test_an_answer_at_its_limit_is_incomplete(
    client: openai.AsyncOpenAI, gpt: FakeUpstream
) -> None:
    gpt.answer(chat("Hel", finish="length"))
    answer = await client.responses.create(model="gpt", input="Hi", max_output_tokens=1)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


async def test_errors_are_openais(client: openai.AsyncOpenAI, gpt: FakeUpstream) -> None:
    gpt.answer(failing(429))
    with pytest.raises(openai.RateLimitError):
        await client.responses.create(model="gpt", input="Hi")
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="gpt", input="Hi", background=True)
    assert caught.value.param == "background"


async def test_a_form_and_an_image_reach_a_chat_provider(
    client: openai.AsyncOpenAI, gpt: FakeUpstream
) -> None:
    form: Any = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    picture: Any = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    turn: Any = {"role": "user", "content": [{"type": "input_text", "text": "See"}, picture]}
    await client.responses.create(
        model="gpt", input=[turn], text={"format": form}, reasoning={"effort": "low"}
    )
    body = gpt.received[0].body
    described = {"name": "n", "schema": {"type": "object"}, "strict": True}
    assert body["response_format"] == {"type": "json_schema", "json_schema": described}
    assert body["reasoning_effort"] == "low"
    assert body["messages"][0]["content"][1] == {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64,AA=="},
    }


async def test_the_local_model_responds(smollm2: Path, tmp_path: Path) -> None:
    configuration = Configuration(
        models={"small": Model(source="smollm2-135m")}, log=Log(directory=str(tmp_path))
    )
    async with (
        running(configuration, {"smollm2-135m": smollm2}) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client,
    ):
        asked: Any = {"model": "small", "max_output_tokens": 12, "temperature": 0}
        first = await client.responses.create(input="Say hello.", **asked)
        assert first.output_text
        second = await client.responses.create(
            input="And goodbye.", previous_response_id=first.id, **asked
        )
        assert second.usage is not None
        assert first.usage is not None
        assert second.usage.input_tokens > first.usage.total_tokens
