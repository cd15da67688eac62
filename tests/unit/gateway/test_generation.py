"""The official client gets from the gateway what it would get from OpenAI."""

from __future__ import annotations

import asyncio

import openai
import pytest

from tests.fakes.gateway import Running
from tests.fakes.upstream import FakeUpstream, chat, completions

HELLO = [{"role": "user", "content": "Hi"}]


async def test_a_whole_chat_answer(
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
    record = (await gateway.records())[0]
    assert record.id == answer.headers["x-request-id"]
    assert (record.status, record.http_status, record.model) == ("ok", 200, "first")
    assert record.output == {"text": "Hello"}
    assert record.cost == pytest.approx((7 * 1.0 + 2 * 10.0) / 1e6)
