"""The official SDK against the real model: tools, structured outputs, and what is refused."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest
import pytest_asyncio
from openai.types.chat import (
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionMessageParam,
    ChatCompletionUserMessageParam,
)

from headrace.config.schema import Configuration, Log, Model
from tests.fakes.gateway import Running, running

MODEL = "smollm2-135m"
QUESTION: list[ChatCompletionUserMessageParam] = [
    {"role": "user", "content": "What is the weather in Paris?"}
]
WEATHER: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"$ref": "#/$defs/unit"},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
            "$defs": {"unit": {"enum": ["celsius", "fahrenheit"]}},
        },
    },
}
TIME: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
PARAMETERS: dict[str, Any] = {
    tool["function"]["name"]: tool["function"]["parameters"] for tool in (WEATHER, TIME)
}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    configuration = Configuration(
        models={MODEL: Model(source=MODEL)},
        log=Log(directory=str(tmp_path_factory.mktemp("log"))),
    )
    async with running(configuration, {MODEL: smollm2}) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0
    ) as sdk:
        yield sdk


def only(calls: Sequence[Any] | None) -> ChatCompletionMessageFunctionToolCall:
    """The one call of an answer."""
    assert calls is not None
    assert [call.type for call in calls] == ["function"]
    call: ChatCompletionMessageFunctionToolCall = calls[0]
    return call


@pytest.mark.parametrize("seed", range(4))
async def test_a_required_call_comes_and_fits_its_schema(
    client: openai.AsyncOpenAI, seed: int
) -> None:
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        tools=[WEATHER, TIME],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=100,
        seed=seed,
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    call = only(choice.message.tool_calls)
    jsonschema.validate(json.loads(call.function.arguments), PARAMETERS[call.function.name])


@pytest.mark.parametrize("name", ["get_weather", "get_time"])
async def test_a_named_function_is_called_also_in_a_stream(
    client: openai.AsyncOpenAI, name: str
) -> None:
    async with client.chat.completions.stream(
        model=MODEL,
        messages=QUESTION,
        tools=[WEATHER, TIME],
        tool_choice={"type": "function", "function": {"name": name}},
        max_tokens=100,
        seed=1,
    ) as stream:
        final = await stream.get_final_completion()
    choice = final.choices[0]
    assert choice.finish_reason == "tool_calls"
    call = only(choice.message.tool_calls)
    assert call.function.name == name
    assert re.fullmatch(r"[A-Za-z0-9]{9}", call.id)
    jsonschema.validate(json.loads(call.function.arguments), PARAMETERS[name])


async def test_a_conversation_with_a_tool_goes_round(client: openai.AsyncOpenAI) -> None:
    first = await client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=100,
        temperature=0,
    )
    call = only(first.choices[0].message.tool_calls)
    said: ChatCompletionMessageParam = first.choices[0].message.model_dump(exclude_none=True)  # type: ignore[assignment]
    result: ChatCompletionMessageParam = {
        "role": "tool",
        "tool_call_id": call.id,
        "content": "18 degrees, rain",
    }
    second = await client.chat.completions.create(
        model=MODEL,
        messages=[*QUESTION, said, result],
        tools=[WEATHER],
        tool_choice="none",
        max_tokens=40,
        temperature=0,
    )
    assert second.choices[0].message.content
    assert not second.choices[0].message.tool_calls


async def test_tools_that_need_not_be_called_leave_the_answer_free(
    client: openai.AsyncOpenAI,
) -> None:
    answer = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=[WEATHER], max_tokens=30, temperature=0
    )
    message = answer.choices[0].message
    assert message.content or message.tool_calls


class City(pydantic.BaseModel):
    name: Literal["Paris", "London", "Rome"]
    people: int = pydantic.Field(ge=0, le=99)
    capital: bool


async def test_structured_output_parses_at_any_seed(client: openai.AsyncOpenAI) -> None:
    answers = await asyncio.gather(
        *(
            client.chat.completions.parse(
                model=MODEL,
                messages=QUESTION,
                response_format=City,
                max_tokens=80,
                temperature=1,
                seed=seed,
            )
            for seed in range(20)
        )
    )
    assert all(isinstance(one.choices[0].message.parsed, City) for one in answers)
    assert {one.choices[0].finish_reason for one in answers} == {"stop"}


async def test_several_choices_are_each_held_to_the_grammar(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        n=4,
        logprobs=True,
        extra_body={"guided_choice": ["sun", "rain", "snow"]},
    )
    for choice in answer.choices:
        assert choice.message.content in ("sun", "rain", "snow")
        assert choice.logprobs is not None
        told = "".join(one.token for one in choice.logprobs.content or ())
        assert told.startswith(choice.message.content or "")


async def test_completions_are_held_to_a_grammar_too(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model=MODEL,
        prompt="A date: ",
        max_tokens=40,
        extra_body={"guided_regex": r"[0-9]{4}-[0-9]{2}-[0-9]{2}"},
    )
    assert re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", answer.choices[0].text)


async def test_json_of_any_form_is_json_unless_it_is_cut(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Give me a person as JSON: name, age."}],
        response_format={"type": "json_object"},
        max_tokens=60,
        seed=4,
    )
    text = answer.choices[0].message.content or ""
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)
    else:
        assert answer.choices[0].finish_reason == "length"
        assert text.lstrip().startswith("{")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "nothing"}},
                }
            },
            "response_format",
        ),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_regex": 3}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_grammar": "no grammar"}, "guided_grammar"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex"),
        ({"tools": [{"type": "code"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [TIME, TIME]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": "sometimes"}, "tool_choice"),
        (
            {
                "tools": [TIME],
                "tool_choice": {"type": "function", "function": {"name": "other"}},
            },
            "tool_choice",
        ),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    client: openai.AsyncOpenAI, body: dict[str, Any], field: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model=MODEL, messages=QUESTION, extra_body=body)
    assert refused.value.param == field
