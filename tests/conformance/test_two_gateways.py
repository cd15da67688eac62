"""A gateway before a gateway says what the one behind it says: nothing is lost on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from headrace.config.schema import (
    Cache,
    Configuration,
    Engine,
    Log,
    Model,
    UpstreamProvider,
)
from headrace.registry.pull import pull
from tests.fakes.gateway import CHAT, COMPLETIONS, Running, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMES = ("tiny", "minilm-l6")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def behind(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    paths = {"tiny": tiny, "minilm-l6": await asyncio.to_thread(pull, "minilm-l6")}
    configuration = Configuration(
        engine=Engine(kv_tokens=4096),
        models={name: Model(source=name) for name in NAMES},
        cache=Cache(enabled=False),
        log=Log(directory=str(tmp_path_factory.mktemp("behind"))),
    )
    async with running(configuration, paths) as gateway:
        yield gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def before(
    behind: Running, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    configuration = Configuration(
        providers={"up": UpstreamProvider(base_url=f"{behind.url}/v1")},
        models={name: Model(source=name, provider="up") for name in NAMES},
        cache=Cache(enabled=False),
        log=Log(directory=str(tmp_path_factory.mktemp("before"))),
    )
    async with running(configuration) as gateway:
        yield gateway


def rounded(value: Any) -> Any:
    """Without what names one answer, and without the last digits of its numbers."""
    if isinstance(value, dict):
        apart = ("id", "created", "usage", "bytes")
        return {name: rounded(item) for name, item in value.items() if name not in apart}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6}
PROMPT = {"model": "tiny", "prompt": "Hello", "max_tokens": 6}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {**HELLO, "temperature": 0, "logprobs": True, "top_logprobs": 3}),
        (CHAT, {**HELLO, "seed": 4, "n": 3, "logprobs": True}),
        (CHAT, {**HELLO, "seed": 4, "logit_bias": {"65": 2.5}, "presence_penalty": 1.5}),
        (CHAT, {**HELLO, "temperature": 0, "stop_token_ids": [70], "min_tokens": 2}),
        (COMPLETIONS, {**PROMPT, "temperature": 0, "logprobs": 2, "echo": True}),
        (COMPLETIONS, {**PROMPT, "seed": 4, "n": 2, "min_p": 0.2, "repetition_penalty": 1.3}),
        (COMPLETIONS, {**PROMPT, "temperature": 0, "prompt_logprobs": 2, "ignore_eos": True}),
        ("/v1/embeddings", {"model": "minilm-l6", "input": ["a river", [101, 102]]}),
        ("/v1/embeddings", {"model": "minilm-l6", "input": "a", "dimensions": 8}),
    ],
)
async def test_both_give_one_answer(
    behind: Running, before: Running, path: str, body: dict[str, Any]
) -> None:
    answers = []
    for gateway in (behind, before):
        async with gateway.post(body, path) as response:
            assert response.status == 200, await response.text()
            answers.append(await response.json())
    assert rounded(answers[0]) == rounded(answers[1])
    for name in ("prompt_tokens", "total_tokens"):
        assert answers[0]["usage"][name] == answers[1]["usage"][name]


async def test_a_bad_field_of_an_embedding_is_named_through_both(before: Running) -> None:
    body = {"model": "minilm-l6", "input": "a", "dimensions": 4000}
    async with before.post(body, "/v1/embeddings") as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "dimensions"


async def test_a_remote_provider_has_no_rerank(before: Running) -> None:
    body = {"model": "minilm-l6", "query": "a", "documents": ["b"]}
    async with before.post(body, "/v1/rerank") as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "model"


async def test_several_choices_are_on_record(behind: Running) -> None:
    body = {**PROMPT, "seed": 9, "n": 2, "logprobs": 0}
    async with behind.post(body, COMPLETIONS, x_request_id="several") as response:
        answer = json.loads(await response.text())
    (record,) = [one for one in await behind.records() if one.id == "several"]
    assert record.output is not None
    texts = [record.output["text"], *(one["text"] for one in record.output["choices"])]
    assert texts == [choice["text"] for choice in answer["choices"]]
    assert record.input is not None
    assert record.input["n"] == 2
    assert "tenant" not in record.input
    assert record.completion_tokens == answer["usage"]["completion_tokens"]
