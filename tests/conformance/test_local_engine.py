"""The official SDK against the real model: the whole way of a request, through every layer."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx2
import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionUserMessageParam

from headrace.config.schema import Configuration, Log, Model
from headrace.providers.local import LocalProvider
from headrace.runtime.process import EngineProcess
from tests.fakes.gateway import Running, running

MODEL = "smollm2-135m"
QUESTION: list[ChatCompletionUserMessageParam] = [
    {"role": "user", "content": "What is the capital of France?"}
]
UNCACHED = {"x-headrace-cache": "off"}
TALE = "Once upon a time"


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


def engine_of(gateway: Running) -> EngineProcess:
    provider = gateway.app.services.providers["local"]
    assert isinstance(provider, LocalProvider)
    return provider.engines[MODEL]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_chat_is_answered_with_usage_and_a_reason(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=20
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 37
    assert answer.usage.total_tokens == 37 + answer.usage.completion_tokens


async def test_a_stream_is_the_whole_answer_in_pieces(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=20, extra_headers=UNCACHED
    )
    stream = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=20, extra_headers=UNCACHED,
        stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = [chunk async for chunk in stream]
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 3
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-2].choices[0].finish_reason == "stop"


async def test_a_completion_continues_its_prompt(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model=MODEL, prompt="One, two, three, four,", temperature=0, max_tokens=3
    )
    assert answer.choices[0].text.startswith(" five")
    assert answer.choices[0].finish_reason == "length"


async def test_a_stop_string_is_not_in_the_answer(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model=MODEL, prompt="One, two, three, four,", temperature=0, max_tokens=20, stop=["seven"]
    )
    assert answer.choices[0].finish_reason == "stop"
    assert "six" in answer.choices[0].text
    assert "seve" not in answer.choices[0].text


async def test_a_seed_repeats_itself_and_another_does_not(client: openai.AsyncOpenAI) -> None:
    async def tell(seed: int) -> str:
        answer = await client.completions.create(
            model=MODEL, prompt=TALE, max_tokens=24, seed=seed, temperature=1.0,
            extra_headers=UNCACHED,
        )  # fmt: skip
        return answer.choices[0].text

    first, again, other = await asyncio.gather(tell(1), tell(1), tell(2))
    assert first == again != other


async def test_an_over_long_prompt_is_refused_with_both_numbers(
    client: openai.AsyncOpenAI,
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(model=MODEL, prompt="word " * 9000)
    assert refused.value.code == "context_length_exceeded"
    assert "8192" in refused.value.message
    assert "9001" in refused.value.message


async def test_a_field_that_the_engine_does_not_know_is_refused_by_name(
    client: openai.AsyncOpenAI,
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(
            model=MODEL, messages=QUESTION, extra_body={"include_stop_str_in_output": True}
        )
    assert refused.value.param == "include_stop_str_in_output"


async def hang_up_streaming(gateway: Running) -> None:
    """Read a little of a long stream, then close the connection."""
    body = {"model": MODEL, "prompt": TALE, "max_tokens": 4000, "ignore_eos": True, "stream": True}
    async with (
        httpx2.AsyncClient() as http,
        http.stream("POST", f"{gateway.url}/v1/completions", json=body, timeout=60) as response,
    ):
        await anext(response.aiter_lines())


async def hang_up_waiting(gateway: Running) -> None:
    """Ask for a long answer in one piece, then close the connection while it is generated."""
    body = {"model": MODEL, "prompt": TALE, "max_tokens": 4000, "ignore_eos": True}
    engine = engine_of(gateway)
    async with httpx2.AsyncClient() as http:
        waiting = asyncio.create_task(
            http.post(f"{gateway.url}/v1/completions", json=body, timeout=60)
        )
        await until(lambda: engine.counters.running > 0)
        waiting.cancel()


@pytest.mark.parametrize("hang_up", [hang_up_streaming, hang_up_waiting])
async def test_a_client_that_hangs_up_stops_its_generation(
    gateway: Running, hang_up: Callable[[Running], Awaitable[None]]
) -> None:
    engine = engine_of(gateway)
    cancelled = engine.counters.cancelled
    await hang_up(gateway)
    await until(lambda: engine.counters.cancelled == cancelled + 1)
    assert engine.counters.running == 0
    assert engine.counters.kv_blocks_used == 0
    steps = engine.counters.steps
    await gateway.idle()
    assert engine.counters.steps == steps  # nothing runs on behalf of a client that is gone
    assert (await gateway.records())[-1].status == "cancelled"


async def test_many_at_once_share_steps(gateway: Running, client: openai.AsyncOpenAI) -> None:
    engine = engine_of(gateway)
    steps, generated = engine.counters.steps, engine.counters.generated_tokens
    await asyncio.gather(
        *(
            client.completions.create(
                model=MODEL, prompt=f"{TALE} number {index}", max_tokens=16,
                extra_body={"ignore_eos": True},
            )
            for index in range(16)
        )
    )  # fmt: skip
    assert engine.counters.generated_tokens - generated == 16 * 16
    assert engine.counters.steps - steps < 16 * 16 / 4


async def test_an_engine_that_is_killed_fails_its_requests_and_comes_back(
    gateway: Running, client: openai.AsyncOpenAI
) -> None:
    engine = engine_of(gateway)
    stream = await client.completions.create(
        model=MODEL, prompt=TALE, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(aiter(stream))
    assert engine.process is not None
    restarts = engine.restarts
    os.kill(engine.process.pid, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="being started again"):
        async for _ in stream:
            pass
    await until(lambda: engine.restarts == restarts + 1 and engine.ready)
    answer = await client.completions.create(model=MODEL, prompt=TALE, max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    failed = next(one for one in reversed(await gateway.records()) if one.status == "error")
    assert failed.error_code == "engine_lost"
