"""Two models in a memory for one: swapped by calls and over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headrace.app import App
from headrace.config.load import Loaded, version_of
from headrace.config.schema import Configuration, Engine, Log, Model
from headrace.protocol.errors import TooLarge
from tests.fakes.adapter import write_adapter
from tests.fakes.gateway import COMPLETIONS, Running, running
from tests.fakes.model import write_tiny_gguf

ADMIN = "/admin/models"


def configuration(directory: Path, memory: str) -> Configuration:
    return Configuration(
        engine=Engine(backend="reference", kv_tokens=512, memory=memory),
        models={name: Model(source=f"ref-{name}") for name in ("one", "two")},
        log=Log(directory=str(directory)),
    )


def files(directory: Path) -> dict[str, Path]:
    return {
        f"ref-{name}": write_tiny_gguf(directory / f"{name}.gguf", seed=seed)
        for seed, name in enumerate(("one", "two"))
    }


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(configuration(tmp_path, "200MiB"), files(tmp_path)) as started:
        yield started


async def say(gateway: Running, model: str, **changes: Any) -> int:
    asked = {"model": model, "prompt": "Hi", "max_tokens": 4, "temperature": 0, **changes}
    async with gateway.post(asked, COMPLETIONS) as response:
        await response.read()
        return response.status


async def states(gateway: Running) -> dict[str, str]:
    async with gateway.http.get(gateway.url + ADMIN) as response:
        found = await response.json()
        assert found["used"] <= found["budget"]
        return {model["name"]: model["state"] for model in found["models"]}


async def change(gateway: Running, name: str, to: str) -> int:
    async with gateway.http.post(f"{gateway.url}{ADMIN}/{name}/{to}") as response:
        return response.status


async def test_a_call_of_a_model_that_is_not_loaded_loads_it(gateway: Running) -> None:
    assert await states(gateway) == {"one": "loaded", "two": "unloaded"}
    async with gateway.http.get(gateway.url + "/health/ready") as response:
        assert response.status == 200
    statuses = await asyncio.gather(*(say(gateway, "two", seed=seed) for seed in range(8)))
    assert statuses == [200] * 8
    assert await states(gateway) == {"one": "unloaded", "two": "loaded"}
    async with gateway.http.get(gateway.url + "/metrics") as response:
        metrics = await response.text()
    assert 'headrace_model_loads_total{model="two"} 1.0' in metrics
    assert 'headrace_model_memory_bytes{model="one"} 0.0' in metrics


async def test_models_are_loaded_and_unloaded_by_request(gateway: Running) -> None:
    assert await change(gateway, "one", "unload") == 200
    assert set((await states(gateway)).values()) == {"unloaded"}
    async with gateway.http.get(gateway.url + "/health/ready") as response:
        assert response.status == 200  # a call would load it
    assert await change(gateway, "two", "load") == 200
    assert await states(gateway) == {"one": "unloaded", "two": "loaded"}
    assert await change(gateway, "nowhere", "load") == 404


async def test_a_model_that_streams_stays(gateway: Running) -> None:
    stream = {"max_tokens": 400, "ignore_eos": True, "stream": True}
    asked = {"model": "one", "prompt": "Hi", **stream}
    async with gateway.post(asked, COMPLETIONS) as response:
        await response.content.readline()
        assert await change(gateway, "one", "unload") == 503
        other = asyncio.create_task(say(gateway, "two"))
        assert b"[DONE]" in await response.read()
    assert await other == 200


async def test_a_model_that_can_never_fit_ends_the_start_with_the_numbers(tmp_path: Path) -> None:
    small = configuration(tmp_path, "100MiB")
    app = App.build(Loaded(small, version_of(small)), files(tmp_path))
    with pytest.raises(TooLarge, match=r"0\.10 GiB"):
        await app.start()
    await app.close()


async def test_an_adapter_is_there_again_when_its_model_is(
    gateway: Running, tmp_path: Path
) -> None:
    fields = {"name": "mine", "model": "one", "adapter": str(write_adapter(tmp_path / "mine", 1))}
    async with gateway.post(fields, "/admin/adapters") as response:
        assert response.status == 200
    for seed, name in enumerate(("mine", "two", "mine")):  # each a call of its own to the cache
        assert await say(gateway, name, seed=seed) == 200
    assert (await states(gateway))["mine"] == "loaded"


async def test_a_model_that_is_in_host_memory_anyway_does_not_sleep(gateway: Running) -> None:
    async with gateway.http.post(f"{gateway.url}{ADMIN}/one/sleep") as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["param"] == "model"
    assert "only a model on one GPU can sleep" in error["message"]
    assert (await states(gateway))["one"] == "loaded"
    assert await say(gateway, "one") == 200
