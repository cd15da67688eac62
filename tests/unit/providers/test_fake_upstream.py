"""The fake upstream is what it stands for: the official client understands it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest

from tests.fakes.upstream import FakeUpstream, Script, Stall, chat, chunk, failing, split


@pytest.fixture
async def client(upstream: FakeUpstream) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=upstream.base_url, api_key="k", max_retries=0) as made:
        yield made


async def stream(client: openai.AsyncOpenAI) -> tuple[str, int | None]:
    """The text and the completion tokens of one streamed answer."""
    text, tokens = "", None
    chunks = await client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    async for each in chunks:
        text += "".join(choice.delta.content or "" for choice in each.choices)
        tokens = each.usage.completion_tokens if each.usage else tokens
    return text, tokens


@pytest.mark.parametrize("script", [chat("Hé", "llo"), split(chat("Hé", "llo"), 1)])
async def test_a_stream_is_understood(
    upstream: FakeUpstream, client: openai.AsyncOpenAI, script: Script
) -> None:
    upstream.answer(script)
    assert await stream(client) == ("Héllo", 2)
    assert upstream.received[0].body["stream"] is True


async def test_an_error_is_understood(upstream: FakeUpstream, client: openai.AsyncOpenAI) -> None:
    upstream.answer(failing(429, "slow down", {"retry-after": "3"}))
    with pytest.raises(openai.RateLimitError, match="slow down") as caught:
        await stream(client)
    assert caught.value.response.headers["retry-after"] == "3"


async def test_scripts_are_used_in_order_and_the_last_one_stays(
    upstream: FakeUpstream, client: openai.AsyncOpenAI
) -> None:
    upstream.answer(chat("a"), chat("b"))
    assert [(await stream(client))[0] for _ in range(3)] == ["a", "b", "b"]


async def test_a_client_that_leaves_is_seen(
    upstream: FakeUpstream, client: openai.AsyncOpenAI
) -> None:
    upstream.answer(Script([chunk({"content": "a"}), Stall()]))
    task = asyncio.ensure_future(stream(client))
    request = await upstream.arrived()
    assert not request.left.is_set()
    task.cancel()
    await asyncio.wait([task])
    await asyncio.wait_for(request.left.wait(), 5)
