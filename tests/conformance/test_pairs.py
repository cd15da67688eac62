"""Every dialect's answers and errors, in every format that a caller speaks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from headrace.config.schema import Configuration, Log, Model, UpstreamProvider
from tests.fakes import dialects
from tests.fakes.gateway import Running, running
from tests.fakes.upstream import JSON, FakeUpstream, Script

DIALECTS = tuple(dialects.PARTS)
FORMATS = ("chat", "messages", "responses")
TOOL: dict[str, Any] = {"name": "weather", "description": "d"}
CALLS = [("weather", dialects.ULM), ("weather", dialects.BONN)]

Said = tuple[str, list[tuple[str, str]], str, tuple[int, int, int]]


class Callers:
    """The official clients of the three formats."""

    def __init__(self, url: str) -> None:
        self.openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self.anthropic = anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)

    async def close(self) -> None:
        await self.openai.close()
        await self.anthropic.close()

    async def ask(self, form: str, model: str, streamed: bool) -> Said:
        """Text, calls, why it ended, and tokens: in, out, cached."""
        return await getattr(self, f"_{form}")(model, streamed)  # type: ignore[no-any-return]

    async def _chat(self, model: str, streamed: bool) -> Said:
        asked: Any = {
            "model": model,
            "messages": [{"role": "user", "content": "Hi"}],
            "tools": [{"type": "function", "function": {**TOOL, "parameters": {}}}],
        }
        if streamed:
            return await self._chunks(asked)
        answer = await self.openai.chat.completions.create(**asked)
        choice = answer.choices[0]
        calls = [
            (call.function.name, compact(call.function.arguments))
            for call in choice.message.tool_calls or ()
        ]
        return choice.message.content or "", calls, choice.finish_reason, tokens_of(answer.usage)

    async def _chunks(self, asked: Any) -> Said:
        text, reason, usage = "", "", None
        calls: dict[int, tuple[str, str]] = {}
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
        stream: Any = await self.openai.chat.completions.create(**asked)
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
                for call in choice.delta.tool_calls or ():
                    name, arguments = calls.get(call.index, ("", ""))
                    more = compact(call.function.arguments or "")
                    calls[call.index] = (name + (call.function.name or ""), arguments + more)
        return text, list(calls.values()), reason, tokens_of(usage)

    async def _messages(self, model: str, streamed: bool) -> Said:
        asked: Any = {
            "model": model,
            "max_tokens": 50,
            "messages": [{"role": "user", "content": "Hi"}],
            "tools": [{**TOOL, "input_schema": {"type": "object"}}],
        }
        if streamed:
            async with self.anthropic.messages.stream(**asked) as stream:
                answer: Any = await stream.get_final_message()
        else:
            answer = await self.anthropic.messages.create(**asked)
        text = "".join(block.text for block in answer.content if block.type == "text")
        calls = [
            (block.name, json.dumps(block.input, separators=(",", ":")))
            for block in answer.content
            if block.type == "tool_use"
        ]
        read = answer.usage.cache_read_input_tokens or 0
        tokens = answer.usage.input_tokens + read, answer.usage.output_tokens, read
        reasons = {
            "end_turn": "stop",
            "max_tokens": "length",
            "tool_use": "tool_calls",
            "refusal": "content_filter",
        }
        return text, calls, reasons[answer.stop_reason], tokens

    async def _responses(self, model: str, streamed: bool) -> Said:
        tool = {"type": "function", **TOOL, "parameters": {}, "strict": False}
        asked: Any = {"model": model, "input": "Hi", "tools": [tool]}
        if streamed:
            events = await self.openai.responses.create(**asked, stream=True)
            *_, last = [event async for event in events]
            answer: Any = last.response
        else:
            answer = await self.openai.responses.create(**asked)
        calls = [
            (item.name, compact(item.arguments))
            for item in answer.output
            if item.type == "function_call"
        ]
        reason = "tool_calls" if calls else "stop"
        if answer.status == "incomplete":
            said = answer.incomplete_details.reason
            reason = "length" if said == "max_output_tokens" else said
        usage = answer.usage
        tokens = usage.input_tokens, usage.output_tokens, cached(usage.input_tokens_details)
        return answer.output_text, calls, reason, tokens


def tokens_of(usage: Any) -> tuple[int, int, int]:
    return usage.prompt_tokens, usage.completion_tokens, cached(usage.prompt_tokens_details)


def compact(arguments: str) -> str:
    return arguments.replace(" ", "")


def cached(details: Any) -> int:
    return details.cached_tokens or 0 if details is not None else 0


@pytest.fixture
async def upstreams() -> AsyncIterator[dict[str, FakeUpstream]]:
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(FakeUpstream()) for name in DIALECTS}


@pytest.fixture
async def gateway(upstreams: dict[str, FakeUpstream], tmp_path: Path) -> AsyncIterator[Running]:
    providers = {
        name: UpstreamProvider(
            base_url=upstream.base_url,
            dialect=name,  # type: ignore[arg-type]
            key="env:TEST_KEY",
            region="us-east-1" if name == "bedrock" else None,
        )
        for name, upstream in upstreams.items()
    }
    models = {name: Model(source="theirs", provider=name) for name in DIALECTS}
    configuration = Configuration(
        providers=providers, models=models, log=Log(directory=str(tmp_path))
    )
    async with running(configuration) as gateway:
        yield gateway


@pytest.fixture
async def callers(gateway: Running) -> AsyncIterator[Callers]:
    made = Callers(gateway.url)
    try:
        yield made
    finally:
        await made.close()


@pytest.mark.parametrize("form", FORMATS)
async def test_parallel_calls_are_the_same_from_every_dialect(
    callers: Callers, upstreams: dict[str, FakeUpstream], form: str
) -> None:
    for dialect, upstream in upstreams.items():
        upstream.answer(dialects.answer(dialect))
        for streamed in (False, True):
            said = await callers.ask(form, dialect, streamed)
            assert said == ("Let me see.", CALLS, "tool_calls", (7, 5, 0)), (dialect, streamed)


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
@pytest.mark.parametrize("form", FORMATS)
async def test_why_an_answer_ended_and_what_it_used_is_the_same_from_every_dialect(
    callers: Callers, upstreams: dict[str, FakeUpstream], form: str, reason: str
) -> None:
    for dialect, upstream in upstreams.items():
        upstream.answer(dialects.ended(dialect, reason))
        for streamed in (False, True):
            said = await callers.ask(form, dialect, streamed)
            assert said == ("Hi.", [], reason, (7, 5, 3)), (dialect, streamed)


@pytest.mark.parametrize(
    ("status", "theirs", "kinds"),
    [
        (400, 400, ("invalid_request_error", "invalid_request_error")),
        (429, 429, ("rate_limit_error", "rate_limit_error")),
        (529, 503, ("overloaded_error", "overloaded_error")),
        (500, 502, ("upstream_error", "api_error")),
    ],
)
async def test_an_error_is_the_same_from_every_dialect(
    gateway: Running,
    upstreams: dict[str, FakeUpstream],
    status: int,
    theirs: int,
    kinds: tuple[str, str],
) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    for dialect, upstream in upstreams.items():
        headers = {**JSON, "retry-after": "7"}
        upstream.answer(Script([dialects.refusal(dialect, "for a reason")], status, headers))
        for path, body in (
            ("/v1/chat/completions", {"messages": messages}),
            ("/v1/messages", {"messages": messages, "max_tokens": 5}),
            ("/v1/responses", {"input": "Hi"}),
        ):
            async with gateway.post({"model": dialect, **body}, path) as answer:
                told = await answer.json()
                anthropic_caller = path == "/v1/messages"
                expected = 529 if anthropic_caller and status == 529 else theirs
                assert answer.status == expected, (dialect, path)
                assert told["error"]["type"] == kinds[anthropic_caller], (dialect, path)
                assert "for a reason" in told["error"]["message"], (dialect, path)
                if status in (429, 529):
                    assert answer.headers["retry-after"] == "7", (dialect, path)
