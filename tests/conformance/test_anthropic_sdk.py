"""The official Anthropic SDK with nothing changed but its base_url."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from headrace.config.schema import Configuration, Log, Model
from tests.fakes import anthropic as theirs
from tests.fakes.gateway import Running, running
from tests.fakes.upstream import (
    JSON,
    Cut,
    FakeUpstream,
    Script,
    chunk,
    failing,
    usage_chunk,
)

HELLO: Any = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "name": "weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
async def client(gateway: Running) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=gateway.url, api_key="none", max_retries=0
    ) as client:
        yield client


@pytest.mark.parametrize("model", ["claude", "gpt"])
async def test_a_message_is_answered_whole(client: anthropic.AsyncAnthropic, model: str) -> None:
    answer = await client.messages.create(model=model, max_tokens=9, messages=HELLO)
    assert answer.id.startswith("msg_")
    assert answer.content[0].model_dump(exclude_none=True) == {
        "type": "text",
        "text": "Hello world",
    }
    assert answer.stop_reason == "end_turn"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 2)
    assert answer._request_id is not None


@pytest.mark.parametrize("model", ["claude", "gpt"])
async def test_the_stream_helper_accumulates_to_the_whole_message(
    client: anthropic.AsyncAnthropic, model: str
) -> None:
    async with client.messages.stream(model=model, max_tokens=9, messages=HELLO) as stream:
        texts = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert texts == ["Hello", " world"]
    assert final.stop_reason == "end_turn"
    assert (final.usage.input_tokens, final.usage.output_tokens) == (7, 2)


def parallel_of_anthropic() -> Script:
    return theirs.message(
        theirs.text_block(0, "Let me see."),
        theirs.tool_block(1, "toolu_1", "weather", '{"city":', '"Ulm"}'),
        theirs.tool_block(2, "toolu_2", "weather", '{"city": "Bonn"}'),
        theirs.tool_block(3, "toolu_3", "now"),
        reason="tool_use",
    )


def parallel_of_openai() -> Script:
    def piece(index: int, arguments: str, **fields: str) -> dict[str, Any]:
        function = {"arguments": arguments}
        if "name" in fields:
            function["name"] = fields.pop("name")
        return {"index": index, **fields, "function": function}

    return Script(
        [
            chunk({"role": "assistant", "content": "Let me see."}),
            chunk({"tool_calls": [piece(0, "", id="toolu_1", name="weather")]}),
            chunk({"tool_calls": [piece(1, "", id="toolu_2", name="weather")]}),
            chunk({"tool_calls": [piece(0, '{"city":'), piece(1, '{"city": "B')]}),
            chunk({"tool_calls": [piece(1, 'onn"}'), piece(0, '"Ulm"}')]}),
            chunk({"tool_calls": [piece(2, "{}", id="toolu_3", name="now")]}),
            chunk({}, "tool_calls"),
            usage_chunk(),
            b"data: [DONE]\n\n",
        ]
    )


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("model", ["claude", "gpt"])
async def test_parallel_tool_calls_keep_their_ids_names_and_arguments(
    client: anthropic.AsyncAnthropic,
    claude: FakeUpstream,
    gpt: FakeUpstream,
    model: str,
    streamed: bool,
) -> None:
    claude.answer(parallel_of_anthropic())
    gpt.answer(parallel_of_openai())
    asked: Any = {"model": model, "max_tokens": 99, "messages": HELLO, "tools": [WEATHER]}
    if streamed:
        async with client.messages.stream(**asked) as stream:
            answer: Any = await stream.get_final_message()
    else:
        answer = await client.messages.create(**asked)
    assert answer.stop_reason == "tool_use"
    text, *calls = answer.content
    assert text.text == "Let me see."
    assert [(call.id, call.name, call.input) for call in calls] == [
        ("toolu_1", "weather", {"city": "Ulm"}),
        ("toolu_2", "weather", {"city": "Bonn"}),
        ("toolu_3", "now", {}),
    ]


CONVERSATION: Any = {
    "max_tokens": 50,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0="},
                },
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Ulm"}},
                {"type": "tool_use", "id": "t2", "name": "weather", "input": {"city": "Bonn"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "rain"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t2",
                    "content": [{"type": "text", "text": "no such city"}],
                    "is_error": True,
                },
                {"type": "text", "text": "So?"},
            ],
        },
    ],
    "tools": [{**WEATHER, "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "stop_sequences": ["END"],
    "metadata": {"user_id": "u1"},
    "extra_body": {"temperature": 0.5},  # newer SDKs have no argument for it
}


async def test_a_conversation_reaches_anthropic_as_it_was(
    client: anthropic.AsyncAnthropic, claude: FakeUpstream
) -> None:
    await client.messages.create(model="claude", **CONVERSATION)
    sent = claude.received[0]
    assert (sent.path, sent.headers["x-api-key"]) == ("/v1/messages", "sk-test")
    assert sent.headers["anthropic-version"] == "2023-06-01"
    expected = {**CONVERSATION, "model": "claude-real", "stream": True, "temperature": 0.5}
    del expected["extra_body"]
    expected = json.loads(json.dumps(expected))
    expected["messages"][2]["content"][1]["content"] = "no such city"  # the same in short
    assert sent.body == expected


async def test_a_conversation_reaches_openai_in_its_words(
    client: anthropic.AsyncAnthropic, gpt: FakeUpstream
) -> None:
    await client.messages.create(model="gpt", **CONVERSATION)
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city":"Ulm"}'}}
    other = {"type": "function", "function": {"name": "weather", "arguments": '{"city":"Bonn"}'}}
    body = gpt.received[0].body
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0="}},
            ],
        },
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"id": "t1", **call}, {"id": "t2", **other}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "rain"},
        {"role": "tool", "tool_call_id": "t2", "content": "no such city"},
        {"role": "user", "content": "So?"},
    ]
    function = {"name": "weather", "description": "Weather of a city"}
    parameters = WEATHER["input_schema"]
    assert body["tools"] == [
        {"type": "function", "function": {**function, "parameters": parameters}}
    ]
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("required", False)
    assert (body["stop"], body["user"], body["temperature"]) == (["END"], "u1", 0.5)


async def test_thoughts_come_with_their_signature(
    client: anthropic.AsyncAnthropic, claude: FakeUpstream
) -> None:
    claude.answer(
        theirs.message(theirs.thinking_block(0, "hm", "c2ln"), theirs.text_block(1, "42"))
    )
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    async with client.messages.stream(
        model="claude", max_tokens=2000, messages=HELLO, thinking=thinking
    ) as stream:
        final: Any = await stream.get_final_message()
    assert claude.received[0].body["thinking"] == thinking
    first, second = final.content
    assert (first.type, first.thinking, first.signature) == ("thinking", "hm", "c2ln")
    assert second.text == "42"


async def test_cached_tokens_are_counted_once_and_told_in_anthropics_way(
    client: anthropic.AsyncAnthropic, claude: FakeUpstream, gateway: Running
) -> None:
    usage: Any = {"cache_read_input_tokens": 100, "cache_creation_input_tokens": 20}
    claude.answer(theirs.message(theirs.text_block(0, "x"), **usage))
    answer = await client.messages.create(model="claude", max_tokens=9, messages=HELLO)
    assert answer.usage.input_tokens == 7
    assert answer.usage.cache_read_input_tokens == 100
    assert answer.usage.cache_creation_input_tokens == 20
    record = (await gateway.records())[0]
    assert (record.prompt_tokens, record.cached_tokens) == (127, 100)


async def test_the_stop_sequence_that_ended_an_answer_is_named(
    client: anthropic.AsyncAnthropic, claude: FakeUpstream
) -> None:
    claude.answer(
        Script([theirs.start(), *theirs.text_block(0, "a"), *theirs.end("stop_sequence", "END")])
    )
    answer = await client.messages.create(
        model="claude", max_tokens=9, messages=HELLO, stop_sequences=["END"]
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "END")


async def test_a_refusal_is_one_in_every_dialect(
    client: anthropic.AsyncAnthropic, claude: FakeUpstream, gateway: Running
) -> None:
    claude.answer(theirs.message(theirs.text_block(0, "No."), reason="refusal"))
    answer = await client.messages.create(model="claude", max_tokens=9, messages=HELLO)
    assert answer.stop_reason == "refusal"
    async with gateway.post({"model": "claude", "messages": HELLO}) as response:
        assert (await response.json())["choices"][0]["finish_reason"] == "content_filter"


@pytest.mark.parametrize(
    ("asked", "said", "error"),
    [
        (theirs.failing(400, "invalid_request_error"), "no", anthropic.BadRequestError),
        (theirs.failing(429, "rate_limit_error"), "rate limit", anthropic.RateLimitError),
        (theirs.failing(529, "overloaded_error"), "overloaded", anthropic.InternalServerError),
        (theirs.failing(500, "api_error"), "status 500", anthropic.InternalServerError),
        (theirs.failing(401, "authentication_error"), "configured key", anthropic.APIStatusError),
    ],
)
async def test_an_upstreams_error_arrives_as_the_sdk_knows_it(
    client: anthropic.AsyncAnthropic,
    claude: FakeUpstream,
    asked: Script,
    said: str,
    error: type[anthropic.APIStatusError],
) -> None:
    claude.answer(asked)
    with pytest.raises(error, match=said) as caught:
        await client.messages.create(model="claude", max_tokens=9, messages=HELLO)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["request_id"].startswith("req_")


async def test_an_overload_keeps_anthropics_own_status(
    client: anthropic.AsyncAnthropic, claude: FakeUpstream
) -> None:
    claude.answer(theirs.failing(529, "overloaded_error", headers={"retry-after": "7"}))
    with pytest.raises(anthropic.APIStatusError) as caught:
        await client.messages.create(model="claude", max_tokens=9, messages=HELLO)
    assert caught.value.status_code == 529
    assert caught.value.response.headers["retry-after"] == "7"


async def test_a_bad_body_is_named_in_anthropics_shape(client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="max_tokens") as caught:
        await client.messages.create(model="claude", max_tokens=0, messages=HELLO)
    body: Any = caught.value.body
    assert body["error"]["type"] == "invalid_request_error"


async def test_an_unknown_model_is_not_found(client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.create(model="nobody", max_tokens=9, messages=HELLO)


@pytest.mark.parametrize("model", ["claude", "gpt"])
async def test_a_cut_stream_never_looks_finished(
    client: anthropic.AsyncAnthropic, claude: FakeUpstream, gpt: FakeUpstream, model: str
) -> None:
    claude.answer(Script([theirs.start(), *theirs.text_block(0, "Hel")[:2], Cut()]))
    gpt.answer(Script([chunk({"content": "Hel"}), Cut()]))
    seen = []

    async def watch() -> None:
        async for event in await client.messages.create(
            model=model, max_tokens=9, messages=HELLO, stream=True
        ):
            seen.append(event.type)

    with pytest.raises(anthropic.APIStatusError):
        await watch()
    assert "content_block_delta" in seen
    assert "message_delta" not in seen
    assert "message_stop" not in seen


async def test_an_error_in_a_stream_is_told_in_the_callers_dialect(
    client: anthropic.AsyncAnthropic, claude: FakeUpstream
) -> None:
    overloaded = {"type": "overloaded_error", "message": "busy"}
    parts = [theirs.start(), *theirs.text_block(0, "a"), theirs.event("error", error=overloaded)]
    claude.answer(Script(parts))
    stream = await client.messages.create(model="claude", max_tokens=9, messages=HELLO, stream=True)
    with pytest.raises(anthropic.APIStatusError, match="busy"):
        _ = [event async for event in stream]


async def test_a_context_that_is_too_long_is_told_by_openai_and_read_by_anthropics_sdk(
    client: anthropic.AsyncAnthropic, gpt: FakeUpstream
) -> None:
    gpt.answer(failing(400, "too long", code="context_length_exceeded"))
    with pytest.raises(anthropic.BadRequestError, match="too long"):
        await client.messages.create(model="gpt", max_tokens=9, messages=HELLO)


async def test_the_local_model_answers_messages(smollm2: Path, tmp_path: Path) -> None:
    configuration = Configuration(
        models={"small": Model(source="smollm2-135m")}, log=Log(directory=str(tmp_path))
    )
    async with (
        running(configuration, {"smollm2-135m": smollm2}) as gateway,
        anthropic.AsyncAnthropic(base_url=gateway.url, api_key="none", max_retries=0) as client,
    ):
        asked: Any = {
            "model": "small",
            "max_tokens": 24,
            "extra_body": {"temperature": 0.0},
            "system": "You are brief.",
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Capital of France?"}]}
            ],
        }
        whole: Any = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            streamed: Any = await stream.get_final_message()
        assert streamed.content[0].text == whole.content[0].text
        assert streamed.usage.output_tokens == whole.usage.output_tokens > 0
        said = whole.content[0].text
        stopped: Any = await client.messages.create(**asked, stop_sequences=[said[4:8]])
        assert stopped.content[0].text == said[: said.index(said[4:8])]
        counted = await client.messages.count_tokens(
            model="small", system=asked["system"], messages=asked["messages"]
        )
        usage = whole.usage
        assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


async def test_openai_clients_reach_anthropic(gateway: Running, claude: FakeUpstream) -> None:
    claude.answer(
        theirs.message(
            theirs.thinking_block(0, "hm", "c2ln"),
            theirs.tool_block(1, "toolu_1", "weather", '{"city":"Ulm"}'),
            reason="tool_use",
        ),
        theirs.hello(),
    )
    asked: Any = {
        "model": "claude",
        "messages": [{"role": "developer", "content": "Brief."}, *HELLO],
    }
    async with gateway.post(asked) as response:
        message = (await response.json())["choices"][0]["message"]
    assert message["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": '{"city":"Ulm"}',
    }
    assert message["reasoning_content"] == "hm"
    answer = {"role": "tool", "tool_call_id": "toolu_1", "content": "rain"}
    async with gateway.post(
        {**asked, "messages": [*asked["messages"], message, answer]}
    ) as response:
        assert response.status == 200
    sent = claude.received[1].body
    assert sent["system"] == [{"type": "text", "text": "Brief."}]
    assert sent["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Ulm"}},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"}],
        },
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", 2), ("logprobs", True), ("logit_bias", {"1": 5}), ("temperature", 1.5)],
)
async def test_what_anthropic_cannot_do_is_refused_by_name(
    gateway: Running, claude: FakeUpstream, field: str, value: object
) -> None:
    async with gateway.post({"model": "claude", "messages": HELLO, field: value}) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == field
    assert claude.received == []


async def test_an_unknown_path_below_messages_says_so_in_anthropics_shape(gateway: Running) -> None:
    async with gateway.post({}, "/v1/messages/nothing") as response:
        assert response.status == 404
        assert (await response.json())["error"]["type"] == "not_found_error"


async def test_tokens_are_counted_by_the_provider_or_estimated(
    client: anthropic.AsyncAnthropic, claude: FakeUpstream
) -> None:
    claude.answer(Script([b'{"input_tokens": 1234}'], headers=JSON))
    asked: Any = {"messages": HELLO, "system": "Be brief.", "tools": [WEATHER]}
    counted = await client.messages.count_tokens(model="claude", **asked)
    assert counted.input_tokens == 1234
    sent = claude.received[0]
    assert sent.path == "/v1/messages/count_tokens"
    assert set(sent.body) == {"model", "messages", "system", "tools"}
    estimated = await client.messages.count_tokens(model="gpt", **asked)
    assert estimated.input_tokens > 0
