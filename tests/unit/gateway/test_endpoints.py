"""Models, health and metrics."""

from __future__ import annotations

from pathlib import Path

import openai

from tests.fakes.gateway import Running, configured, running
from tests.fakes.upstream import FakeUpstream, failing

BODY = {"model": "first", "messages": [{"role": "user", "content": "Hi"}]}


async def test_the_model_list_names_models_and_routes(client: openai.AsyncOpenAI) -> None:
    models = {model.id: model.owned_by async for model in client.models.list()}
    assert models == {"first": "up-first", "second": "up-second", "smart": "headrace"}
    assert (await client.models.retrieve("smart")).id == "smart"


async def test_an_unknown_model_is_not_found(gateway: Running) -> None:
    async with gateway.http.get(gateway.url + "/v1/models/org/none") as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "model_not_found"


async def test_ready_says_whether_any_model_can_be_served(
    first: FakeUpstream, tmp_path: Path
) -> None:
    first.answer(failing(429, headers={"retry-after": "60"}))
    async with running(configured(tmp_path, first)) as gateway:

        async def status(path: str) -> int:
            async with gateway.http.get(gateway.url + path) as response:
                return response.status

        assert (await status("/health/live"), await status("/health/ready")) == (200, 200)
        async with gateway.post(BODY) as response:
            assert response.status == 429
        assert (await status("/health/live"), await status("/health/ready")) == (200, 503)


async def test_nothing_configured_is_not_ready(tmp_path: Path) -> None:
    async with (
        running(configured(tmp_path)) as gateway,
        gateway.http.get(gateway.url + "/health/ready") as response,
    ):
        assert response.status == 503


async def test_metrics_count_the_calls(gateway: Running) -> None:
    async with gateway.post(BODY) as response:
        await response.read()
    async with gateway.http.get(gateway.url + "/metrics") as response:
        text = await response.text()
    assert response.headers["content-type"].startswith("text/plain")
    assert 'headrace_calls_total{cache="off",model="first",provider="up-first",status="ok"}' in text
    assert "headrace_calls_running 0.0" in text
    assert "headrace_records_lost_total 0.0" in text


async def test_the_console_is_there(gateway: Running) -> None:
    async with gateway.http.get(gateway.url + "/") as response:
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/html")


async def test_models_say_what_they_can_do(gateway: Running) -> None:
    async with gateway.http.get(gateway.url + "/v1/models/first") as response:
        told = await response.json()
    assert told["context_length"] is None
    assert told["capabilities"]["tools"] is None
    assert "images" in told["endpoints"]
    assert "rerank" not in told["endpoints"]
