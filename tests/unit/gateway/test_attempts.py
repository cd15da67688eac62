"""A failure before the first token goes to the next attempt; one after it ends the answer."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest

from headrace.config.schema import Timeouts
from tests.fakes.gateway import Running, configured, running
from tests.fakes.upstream import Cut, FakeUpstream, Part, Script, Stall, chat, chunk, failing

SMART = {"model": "smart", "messages": [{"role": "user", "content": "Hi"}]}

BROKEN = {
    "status 500": failing(500),
    "overloaded": failing(503, headers={"retry-after": "7"}),
    "rate limited": failing(429, headers={"retry-after": "7"}),
    "our key refused": failing(401),
    "cut before the head": Script(head=[Cut()]),
    "cut before an event": Script([Cut()]),
    "not JSON": Script([b"data: {oops\n\n"]),
    "empty": Script([]),
    "an error event first": Script([b'data: {"error": {"message": "no"}}\n\n']),
    "model unknown there": failing(404, code="model_not_found"),
    "prompt too long for it": failing(400, code="context_length_exceeded"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("script", BROKEN.values(), ids=BROKEN)
async def test_a_failure_before_the_first_event_goes_to_the_next_attempt(
    gateway: Running, first: FakeUpstream, second: FakeUpstream, script: Script, stream: bool
) -> None:
    first.answer(script)
    second.answer(chat("from the second"))
    async with gateway.post({**SMART, "stream": stream}) as response:
        text = await response.text()
    assert response.status == 200
    assert "from the second" in text
    assert "error" not in text
    assert response.headers["x-headrace-model"] == "second"
    assert response.headers["x-headrace-provider"] == "up-second"
    (record,) = await gateway.records()
    assert (record.status, record.served_model) == ("ok", "second")
    assert [attempt.model for attempt in record.attempts] == ["first", "second"]
    assert record.attempts[0].error_code is not None
    assert record.attempts[1].error is None
    assert (record.attempts[1].ttft is not None) == stream


PREAMBLE = chunk({"role": "assistant", "content": ""})


@pytest.mark.parametrize("ending", [Cut(), Stall()], ids=["cut", "silent"])
async def test_a_preamble_is_no_first_token_so_the_next_attempt_may_still_answer(
    first: FakeUpstream, second: FakeUpstream, tmp_path: Path, ending: Part
) -> None:
    first.answer(Script([PREAMBLE, b": ping\n\n", ending]))
    second.answer(chat("from the second"))
    settings = configured(tmp_path, first, second, timeouts=Timeouts(first_token=0.1))
    async with (
        running(settings) as gateway,
        gateway.post({**SMART, "stream": True}) as response,
    ):
        text = await response.text()
    assert "from the second" in text
    assert text.count('"role":"assistant"') == 1
    assert response.headers["x-headrace-model"] == "second"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_an_answer_that_takes_too_long_to_begin_goes_to_the_next_attempt(
    first: FakeUpstream, second: FakeUpstream, tmp_path: Path, stream: bool
) -> None:
    first.answer(Script([Stall()]))
    second.answer(chat("here"))
    settings = configured(tmp_path, first, second, timeouts=Timeouts(first_token=0.05, whole=0.05))
    asked = {**SMART, "stream": stream}
    async with running(settings) as gateway, gateway.post(asked) as response:
        assert "here" in await response.text()
        (record,) = await gateway.records()
    assert record.attempts[0].error_code == "upstream_timeout"
    assert first.received[0].left.is_set()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_when_all_attempts_fail_the_last_error_is_told(
    gateway: Running, first: FakeUpstream, second: FakeUpstream, stream: bool
) -> None:
    first.answer(failing(500))
    second.answer(failing(429, "slow down", headers={"retry-after": "7"}))
    async with gateway.post({**SMART, "stream": stream}) as response:
        error = (await response.json())["error"]
    assert response.status == 429
    assert response.headers["retry-after"] == "7"
    assert error["type"] == "rate_limit_error"
    assert "slow down" in error["message"]
    assert "x-headrace-model" not in response.headers
    (record,) = await gateway.records()
    assert (record.status, record.http_status) == ("error", 429)
    assert record.error_code == "rate_limit_exceeded"
    assert len(record.attempts) == 2


async def test_a_refusal_that_is_not_about_one_model_stands(
    gateway: Running, first: FakeUpstream, second: FakeUpstream
) -> None:
    first.answer(failing(400, "against the rules", code="content_policy", param="messages"))
    async with gateway.post(SMART) as response:
        error = (await response.json())["error"]
    assert response.status == 400
    assert (error["code"], error["param"]) == ("content_policy", "messages")
    assert second.received == []


ENDINGS: dict[str, list[Part]] = {
    "cut": [Cut()],
    "ended without finish reason": [],
    "error event": [b'data: {"error": {"message": "it broke"}}\n\n'],
    "nonsense": [b"data: {\n\n"],
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
async def test_a_stream_that_breaks_ends_with_an_error_event_and_never_looks_finished(
    gateway: Running, first: FakeUpstream, second: FakeUpstream, ending: list[Part]
) -> None:
    first.answer(Script([chunk({"content": "Hel"}), *ending]))
    async with gateway.post({**SMART, "stream": True}) as response:
        events = (await response.text()).split("\n\n")
    assert response.status == 200
    assert events[-1] == ""
    error = json.loads(events[-2].removeprefix("data: "))["error"]
    assert error["type"] == "upstream_error"
    assert error["message"]
    assert not any("[DONE]" in event for event in events)
    for event in events[:-2]:
        assert json.loads(event.removeprefix("data: "))["choices"][0]["finish_reason"] is None
    assert second.received == []
    (record,) = await gateway.records()
    assert (record.status, record.http_status) == ("error", 200)
    assert record.output == {"text": "Hel"}
    assert record.finish_reason is None
    assert record.usage_provenance == "estimated"
    assert (record.prompt_tokens, record.completion_tokens) == (1, 1)


async def test_the_client_raises_when_a_stream_breaks(
    client: openai.AsyncOpenAI, first: FakeUpstream
) -> None:
    first.answer(Script([chunk({"content": "Hel"}), Cut()]))
    stream = await client.chat.completions.create(
        model="first", messages=[{"role": "user", "content": "Hi"}], stream=True
    )
    text = ""

    async def read() -> None:
        nonlocal text
        async for part in stream:
            text += part.choices[0].delta.content or ""

    with pytest.raises(openai.APIError, match="up-first"):
        await read()
    assert text == "Hel"


async def test_a_whole_answer_that_breaks_is_an_error_and_not_half_an_answer(
    gateway: Running, first: FakeUpstream, second: FakeUpstream
) -> None:
    first.answer(Script([chunk({"content": "Hel"}), Cut()]))
    async with gateway.post(SMART) as response:
        body = await response.json()
    assert response.status == 502
    assert list(body) == ["error"]
    assert second.received == []


async def test_a_provider_that_keeps_failing_is_left_alone(
    gateway: Running, first: FakeUpstream, second: FakeUpstream
) -> None:
    first.answer(failing(500))
    for _ in range(4):
        async with gateway.post(SMART) as response:
            assert response.status == 200
    assert (len(first.received), len(second.received)) == (3, 4)
    record = (await gateway.records())[-1]
    assert [attempt.model for attempt in record.attempts] == ["second"]
    assert record.skipped[0]["model"] == "first"
