"""The local engine as a provider: tenants apart, choices together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from headrace.config.schema import Engine
from headrace.protocol.encoding import EmbeddingRequest
from headrace.protocol.errors import InvalidField, TargetMissed
from headrace.protocol.generation import (
    Event,
    Finished,
    GenerationRequest,
    Objectives,
    TextDelta,
)
from headrace.providers.base import Classifier, Embedder, Ranker, answer
from headrace.providers.local import LocalProvider
from headrace.providers.local_outlook import outlook
from headrace.providers.remote import RemoteProvider
from tests.fakes.upstream import FakeUpstream
from tests.unit.providers.calling import provider

REQUEST = GenerationRequest(
    endpoint="completions", model="m", prompt="x" * 100, max_tokens=3, tenant="one", seed=1
)


@pytest.fixture
async def local(tiny: Path) -> AsyncIterator[LocalProvider]:
    made = LocalProvider({"ref": tiny}, Engine(backend="reference", kv_tokens=2048))
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def ask(made: LocalProvider, **changes: Any) -> list[Event]:
    request = structs.replace(REQUEST, **changes)
    return [event async for event in made.generate(request, "ref")]


async def cached(made: LocalProvider, **changes: Any) -> int:
    last = (await ask(made, **changes))[-1]
    assert isinstance(last, Finished)
    return last.usage.cached_tokens


async def test_a_tenant_finds_its_own_prefixes_and_no_others(local: LocalProvider) -> None:
    assert await cached(local) == 0
    assert await cached(local) == 96
    assert await cached(local, tenant="two") == 0


async def test_further_choices_find_the_prompt_of_the_first(local: LocalProvider) -> None:
    await ask(local, n=4)
    engine = local.engines["ref"]
    assert engine.counters.cached_tokens == 3 * 96
    assert engine.counters.prompt_tokens == 4 * 100


def test_the_time_of_a_step_is_the_files_to_say(tiny: Path) -> None:
    made = LocalProvider({"ref": tiny}, Engine(max_step=0.025))
    assert made.engines["ref"].options.limits.step == 0.025


async def test_what_would_come_too_late_is_refused_and_says_so(local: LocalProvider) -> None:
    assert isinstance((await ask(local, objectives=Objectives(ttft=60.0)))[-1], Finished)
    with pytest.raises(TargetMissed) as refused:
        await ask(local, objectives=Objectives(ttft=1e-9))
    assert (refused.value.status, refused.value.code) == (503, "ttft_target_missed")
    assert refused.value.retry_after is not None


async def test_a_call_behind_a_queue_has_longer_to_wait_by_what_the_engine_says(
    local: LocalProvider,
) -> None:
    for number in range(3):  # by then it knows what a token takes
        await ask(local, prompt=f"{number}" * 400)
    engine = local.engines["ref"]
    idle = outlook(engine.counters, 400)
    queue = [
        asyncio.create_task(ask(local, prompt=f"{number}" * 400, tenant=f"{number}"))
        for number in range(40)
    ]
    busy = idle
    while not all(one.done() for one in queue):
        await asyncio.wait(queue, timeout=0.001, return_when=asyncio.FIRST_COMPLETED)
        busy = max(busy or (0.0, 0.0), outlook(engine.counters, 400) or (0.0, 0.0))
    assert idle is not None
    assert busy is not None
    assert busy[0] > 2 * idle[0]


async def test_best_of_says_its_choice_in_one_piece(local: LocalProvider) -> None:
    said = await ask(local, best_of=3)
    assert {event.choice for event in said if isinstance(event, TextDelta)} == {0}
    assert not any(event.logprobs for event in said if isinstance(event, TextDelta))
    last = said[-1]
    assert isinstance(last, Finished)
    assert last.usage.completion_tokens == 9
    assert last.usage.prompt_tokens == 100


async def test_what_a_provider_can_do_is_its_type(
    local: LocalProvider, upstream: FakeUpstream
) -> None:
    assert isinstance(local, Embedder)
    assert isinstance(local, Ranker)
    assert isinstance(local, Classifier)
    async with provider(upstream) as remote:
        assert isinstance(remote, Embedder)
        assert not isinstance(remote, Classifier)
        assert isinstance(remote, RemoteProvider)


async def test_a_model_that_generates_does_not_embed(local: LocalProvider) -> None:
    request = EmbeddingRequest(model="m", input=("a",))
    with pytest.raises(InvalidField) as caught:
        async for _ in answer(local, request, "ref"):
            pass
    assert caught.value.param == "model"


async def test_callers_of_models_that_change_places_are_all_answered(tiny: Path) -> None:
    local = LocalProvider({"one": tiny, "two": tiny}, Engine(backend="reference", kv_tokens=2048))
    local.residency.budget = local.residency.models["one"].bytes
    await local.start()

    async def call(name: str) -> list[Event]:
        return [event async for event in local.generate(REQUEST, name)]

    async def kill() -> None:
        """The process that loads the second model, and the one that waits for the third load."""
        before = local.engines["two"].process
        while local.engines["two"].process is before:
            await asyncio.sleep(0)
        loading = local.engines["two"].process
        assert loading is not None
        loading.kill()
        local.spare.begin()
        assert local.spare.coming is not None
        (await local.spare.coming).process.kill()

    try:
        async with asyncio.timeout(60):
            killing = asyncio.create_task(kill())
            answers = await asyncio.gather(*(call(name) for name in ("two", "one") * 10))
            await killing
        assert all(isinstance(events[-1], Finished) for events in answers)
        assert all(len(events) > 1 for events in answers)
    finally:
        await local.close()
