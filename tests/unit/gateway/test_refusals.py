"""Every refused request gets an answer: OpenAI's shape, the right status, a request id."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from pathlib import Path

import aiohttp
import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from headrace.config.schema import Server
from headrace.protocol.generation import Event, GenerationRequest, TextDelta
from tests.fakes.gateway import CHAT, COMPLETIONS, Running, configured, running
from tests.fakes.upstream import FakeUpstream, Gate, Script, chunk

HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Hi"}]
BODY = {"model": "first", "messages": HELLO}
JSON = {"content-type": "application/json"}


async def error_of(response: aiohttp.ClientResponse) -> dict[str, str | None]:
    body = await response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    error: dict[str, str | None] = body["error"]
    return error


async def test_the_client_raises_its_own_exceptions(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"'gpt-0' does not exist.*first"):
        await client.chat.completions.create(model="gpt-0", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="first", messages=HELLO, temperature=3)
    assert caught.value.param == "temperature"
    assert caught.value.code == "invalid_value"
    assert caught.value.request_id is not None


async def test_a_refused_call_is_on_record(gateway: Running) -> None:
    bodies: list[object] = [
        {"model": "gpt-0", "messages": HELLO},
        {"model": "first", "messages": []},
        [],
    ]
    for body in bodies:
        async with gateway.post(body) as response:
            assert response.status in (400, 404)
    records = await gateway.records()
    assert [(record.model, record.http_status, record.error_code) for record in records] == [
        ("gpt-0", 404, "model_not_found"),
        ("first", 400, "invalid_value"),
        ("", 400, "malformed_body"),
    ]
    assert all(record.status == "error" for record in records)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b"{}"),
        ({"content-type": "text/plain"}, json.dumps(BODY).encode()),
        ({**JSON, "content-encoding": "gzip"}, b"\x1f\x8b"),
        (JSON, b""),
        (JSON, b"{"),
        (JSON, b'{"model": "\xff"}'),
        (JSON, b"[" * 1_000_000),
        (JSON, b'{"model": NaN}'),
    ],
    ids=["no type", "text", "gzip", "empty", "half", "not UTF-8", "deep", "NaN"],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_body_that_is_not_json_is_refused(
    gateway: Running, headers: dict[str, str], body: bytes, path: str
) -> None:
    async with gateway.http.post(
        gateway.url + path, data=body, headers=headers, skip_auto_headers=["content-type"]
    ) as response:
        assert response.status == 400
        assert (await error_of(response))["code"] == "malformed_body"


async def test_a_body_over_the_limit_is_refused_announced_or_chunked(
    first: FakeUpstream, tmp_path: Path
) -> None:
    async def endless() -> AsyncGenerator[bytes, None]:
        for _ in range(100):
            yield b"x" * 1000

    settings = configured(tmp_path, first, server=Server(max_body_bytes=10_000))
    async with running(settings) as gateway:
        for data in (b"x" * 10_001, endless()):
            async with gateway.http.post(gateway.url + CHAT, data=data, headers=JSON) as response:
                assert response.status == 413
                assert "10000 bytes" in str((await error_of(response))["message"])
        async with gateway.post(BODY) as response:
            assert response.status == 200


async def test_a_call_over_the_bound_is_told_at_once_to_come_back(
    first: FakeUpstream, tmp_path: Path
) -> None:
    gate = Gate()
    first.answer(Script([gate, chunk({"content": "x"}, "stop"), b"data: [DONE]\n\n"]))
    settings = configured(tmp_path, first, server=Server(max_concurrent_requests=1))
    async with running(settings) as gateway:
        running_call = asyncio.ensure_future(gateway.http.post(gateway.url + CHAT, json=BODY))
        await gate.reached.wait()
        async with gateway.post(BODY) as response:
            assert response.status == 503
            assert response.headers["retry-after"] == "1"
            assert (await error_of(response))["code"] == "overloaded"
        gate.opened.set()
        async with await running_call as response:
            assert response.status == 200
        async with gateway.post(BODY) as response:
            assert response.status == 200


async def test_unknown_paths_and_methods_in_openais_shape(gateway: Running) -> None:
    async with gateway.http.post(gateway.url + "/v1/nothing") as response:
        assert response.status == 404
        assert (await error_of(response))["code"] == "not_found"
    async with gateway.http.get(gateway.url + CHAT) as response:
        assert response.status == 405
        assert response.headers["allow"] == "POST"
        assert (await error_of(response))["code"] == "method_not_allowed"
    async with gateway.http.post(gateway.url + CHAT + "/", allow_redirects=False) as response:
        assert response.status == 404


class Faulty:
    """A provider with a defect: it raises what no provider may."""

    name = "up-first"

    def __init__(self, after: int) -> None:
        self.after = after

    async def generate(self, request: GenerationRequest, model: str) -> AsyncGenerator[Event, None]:
        for _ in range(self.after):
            yield TextDelta("x")
        raise KeyError("a secret detail")

    def ready(self, model: str) -> bool:
        return True

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("after", [0, 1], ids=["before the headers", "in the stream"])
async def test_a_defect_is_logged_with_its_traceback_and_never_shown(
    gateway: Running, caplog: pytest.LogCaptureFixture, after: int
) -> None:
    providers = gateway.app.services.providers
    assert isinstance(providers, dict)
    await providers["up-first"].close()
    providers["up-first"] = Faulty(after)
    with caplog.at_level(logging.ERROR):
        async with gateway.post({**BODY, "stream": True}) as response:
            text = await response.text()
    call_id = response.headers["x-request-id"]
    assert response.status == (200 if after else 500)
    assert "a secret detail" not in text
    assert call_id in text
    assert "server_error" in text
    assert call_id in caplog.text
    assert "a secret detail" in caplog.text
    (record,) = await gateway.records()
    assert (record.id, record.status) == (call_id, "error")
    async with gateway.post({**BODY, "model": "second"}) as response:
        assert response.status == 200
