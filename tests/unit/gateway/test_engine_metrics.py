"""What /metrics and /health/ready say of the engines."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest

from headrace.config.schema import Configuration, Engine, Log, Model
from headrace.gateway.engine_metrics import COUNTERS, GAUGES
from headrace.runtime.request import Counters
from tests.fakes.gateway import COMPLETIONS, Running, running


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    return Configuration(
        engine=Engine(backend="reference", kv_tokens=512),
        models={"one": Model(source="ref-one"), "two": Model(source="ref-two")},
        log=Log(directory=str(tmp_path)),
    )


async def scraped(gateway: Running) -> dict[str, float]:
    async with gateway.http.get(f"{gateway.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("headrace_engine"))
    return {name: float(value) for name, value in pairs}


async def test_each_engine_is_counted_by_its_models_name(
    configuration: Configuration, tiny: Path
) -> None:
    async with running(configuration, {"ref-one": tiny, "ref-two": tiny}) as gateway:
        body = {"model": "one", "prompt": "Hello", "max_tokens": 3, "ignore_eos": True}
        async with gateway.post(body, COMPLETIONS) as response:
            assert response.status == 200
        found = await scraped(gateway)
    assert found['headrace_engine_prompt_tokens_total{model="one"}'] == 5
    assert found['headrace_engine_generated_tokens_total{model="one"}'] == 3
    assert found['headrace_engine_steps_total{model="one"}'] == 3
    assert found['headrace_engine_kv_blocks{model="one"}'] == 16
    assert found['headrace_engine_running{model="one"}'] == 0
    assert found['headrace_engine_kv_occupancy_ratio{model="one"}'] == 0
    assert found['headrace_engine_restarts_total{model="two"}'] == 0
    assert found['headrace_engine_steps_total{model="two"}'] == 0


async def test_the_share_of_prompt_tokens_that_were_there_already_is_told(
    configuration: Configuration, tiny: Path
) -> None:
    async with running(configuration, {"ref-one": tiny, "ref-two": tiny}) as gateway:
        body = {"model": "one", "prompt": list(range(5, 70)), "max_tokens": 1}
        for _ in range(2):
            async with gateway.post(body | {"temperature": 1}, COMPLETIONS) as response:
                assert response.status == 200
        found = await scraped(gateway)
    assert found['headrace_engine_prefix_hit_ratio{model="one"}'] == pytest.approx(64 / 130)
    assert found['headrace_engine_prefix_hit_ratio{model="two"}'] == 0


async def test_a_dead_engine_leaves_the_other_models_ready(
    configuration: Configuration, tiny: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved.gguf"
    await asyncio.to_thread(shutil.copy, tiny, moved)
    async with running(configuration, {"ref-one": moved, "ref-two": tiny}) as gateway:
        engine = gateway.app.services.providers["local"].engines["ref-one"]  # type: ignore[attr-defined]
        moved.unlink()  # it cannot start again
        os.kill(engine.process.pid, signal.SIGKILL)
        while engine.ready:
            await asyncio.sleep(0)
        async with gateway.post({"model": "one", "prompt": "Hi"}, COMPLETIONS) as response:
            assert response.status == 503
        async with gateway.http.get(f"{gateway.url}/health/ready") as response:
            assert response.status == 200
        async with gateway.post({"model": "two", "prompt": "Hi"}, COMPLETIONS) as response:
            assert response.status == 200
        route = response.headers["x-headrace-route"]
        assert route.startswith("model:two@")


def test_every_counter_of_the_engine_is_on_metrics() -> None:
    fields = set(Counters.__dataclass_fields__) - {"queued"}
    assert set(GAUGES) | set(COUNTERS) == fields | {"queued_tokens"}
