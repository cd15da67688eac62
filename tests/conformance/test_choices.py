"""Sampling fields, several choices and log-probabilities, as the official SDK sees them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionTokenLogprob, ChatCompletionUserMessageParam

from headrace.config.schema import Configuration, Engine, Log, Model
from tests.fakes.gateway import Running, running

HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Hi"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    configuration = Configuration(
        engine=Engine(backend="reference", kv_tokens=4096),
        models={"tiny": Model(source="tiny")},
        log=Log(directory=str(tmp_path_factory.mktemp("log"))),
    )
    async with running(configuration, {"tiny": tiny}) as gateway:
        yield gateway


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        yield client


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_n_choices_are_seeded_one_after_another(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": HELLO,
        "max_tokens": 8,
        "extra_body": {"ignore_eos": True},
    }
    several = await client.chat.completions.create(**asked, n=3, seed=5)
    singles = [await client.chat.completions.create(**asked, seed=seed) for seed in (5, 6, 7)]
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert [choice.message.content for choice in several.choices] == [
        single.choices[0].message.content for single in singles
    ]
    assert several.usage is not None
    assert singles[0].usage is not None
    assert several.usage.prompt_tokens == singles[0].usage.prompt_tokens
    assert several.usage.completion_tokens == 24


async def test_streamed_choices_put_together_are_the_whole_ones(
    client: openai.AsyncOpenAI,
) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": HELLO,
        "max_tokens": 8,
        "n": 3,
        "seed": 11,
        "logprobs": True,
        "top_logprobs": 2,
        "extra_body": {"ignore_eos": True},
        "extra_headers": {"x-headrace-cache": "off"},
    }
    whole = await client.chat.completions.create(**asked)
    texts, reasons = [""] * 3, [""] * 3
    tokens: list[list[ChatCompletionTokenLogprob]] = [[], [], []]
    async for part in await client.chat.completions.create(**asked, stream=True):
        (piece,) = part.choices
        texts[piece.index] += piece.delta.content or ""
        reasons[piece.index] = piece.finish_reason or ""
        if piece.logprobs is not None:
            tokens[piece.index] += piece.logprobs.content or []
    for choice in whole.choices:
        assert choice.message.content == texts[choice.index]
        assert choice.finish_reason == reasons[choice.index] == "length"
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert len(choice.logprobs.content) == 8
        for token, again in zip(choice.logprobs.content, tokens[choice.index], strict=True):
            assert (token.token, token.bytes) == (again.token, again.bytes)
            assert len(token.top_logprobs) == 2
            assert math.isclose(token.logprob, again.logprob, abs_tol=1e-4)


async def test_an_echoed_prompt_is_scored_token_by_token(client: openai.AsyncOpenAI) -> None:
    text = "Hello"
    for prompt in (text, list(text.encode())):
        answer = await client.completions.create(
            model="tiny", prompt=prompt, max_tokens=2, temperature=0, logprobs=1, echo=True
        )
        (choice,) = answer.choices
        assert choice.text.startswith(text)
        told = choice.logprobs
        assert told is not None
        assert told.tokens is not None
        assert told.token_logprobs is not None
        assert told.tokens[:5] == list(text)
        assert told.token_logprobs[0] is None
        assert all(value < 0 for value in told.token_logprobs[1:])
        assert told.text_offset is not None
        assert told.text_offset[:6] == [0, 1, 2, 3, 4, 5]


async def test_the_best_of_several_has_the_highest_mean_logprob(
    client: openai.AsyncOpenAI,
) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "prompt": "Hi",
        "max_tokens": 4,
        "logprobs": 0,
        "extra_body": {"ignore_eos": True},
    }
    every = await client.completions.create(**asked, n=4, seed=3)

    def mean(choice: Any) -> float:
        told: list[float] = choice.logprobs.token_logprobs
        return sum(told) / len(told)

    best = await client.completions.create(**asked, n=2, best_of=4, seed=3)
    expected = sorted(every.choices, key=mean, reverse=True)[:2]
    assert [choice.text for choice in best.choices] == [choice.text for choice in expected]
    assert best.usage is not None
    assert best.usage.completion_tokens == 16


async def test_biases_and_stop_tokens_reach_the_engine(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "Hi", "max_tokens": 6, "temperature": 0}
    forced = await client.completions.create(**asked, logit_bias={"65": 100})
    assert len(set(forced.choices[0].text)) == 1
    stopped = await client.completions.create(
        **asked, logit_bias={"65": 100}, extra_body={"stop_token_ids": [65], "min_tokens": 3}
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage is not None
    assert stopped.usage.completion_tokens == 4


async def test_a_bias_outside_the_vocabulary_is_named(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="tiny", prompt="Hi", logit_bias={"70000": 1})
    assert caught.value.param == "logit_bias"


async def test_the_prompts_logprobs_stand_by_token_id(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="tiny", prompt="Hey", max_tokens=1, extra_body={"prompt_logprobs": 2}
    )
    told = answer.choices[0].model_extra
    assert told is not None
    first, second, third = told["prompt_logprobs"]
    assert first is None
    assert next(iter(second)) == "101"
    assert second["101"]["decoded_token"] == "e"
    assert {one["rank"] for one in third.values()} >= {1, 2}


async def test_leaving_frees_every_choice(gateway: Running, client: openai.AsyncOpenAI) -> None:
    async with await client.chat.completions.create(
        model="tiny", messages=HELLO, n=4, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        async for part in stream:
            if part.choices[0].index == 3:
                break
    await gateway.idle()
    engine = gateway.app.services.providers["local"].engines["tiny"]  # type: ignore[attr-defined]
    async with asyncio.timeout(10):
        while engine.counters.running or engine.counters.cancelled < 4:
            await client.completions.create(model="tiny", prompt="x", max_tokens=1)
