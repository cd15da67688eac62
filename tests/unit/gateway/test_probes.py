"""Probes find out who is well, so that no caller has to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from headrace.config.load import ConfigurationError, load
from headrace.config.schema import Model, Probe
from tests.fakes.gateway import Running, configured, running
from tests.fakes.upstream import JSON, FakeUpstream, Gate, Script, Stall, chat, chunk, failing

ASKED: dict[str, Any] = {"model": "smart", "messages": [{"role": "user", "content": "Hi"}]}
LISTED = Script([b'{"data": []}'], headers=JSON)
TOKEN = Script([chunk({"content": "H"}), chunk({}, "length"), b"data: [DONE]\n\n"])


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def probing(
    directory: Path,
    first: FakeUpstream,
    second: FakeUpstream,
    provider: Probe | None = None,
    model: Probe | None = None,
) -> AsyncIterator[tuple[Running, Clock]]:
    """A gateway that probes the first of two upstreams, or its model."""
    settings, clock = configured(directory, first, second), Clock()
    upstream = structs.replace(settings.providers["up-first"], probe=provider or Probe())
    probed: Model = structs.replace(settings.models["first"], probe=model or Probe())
    settings = structs.replace(
        settings,
        providers={**settings.providers, "up-first": upstream},
        models={**settings.models, "first": probed},
    )
    async with running(settings, clock=clock) as gateway:
        gateway.app.probes.look()
        yield gateway, clock


async def probed(gateway: Running) -> dict[str, Any]:
    """What `/admin/health` says, once no probe runs."""
    async with asyncio.timeout(5):
        while gateway.app.probes.running:
            await asyncio.sleep(0)
    async with gateway.http.get(gateway.url + "/admin/health") as response:
        answer: dict[str, Any] = await response.json()
        return answer


async def probe(gateway: Running, clock: Clock, seconds: float) -> dict[str, Any]:
    """Let time pass, and the probes that are due then."""
    clock.now += seconds
    gateway.app.probes.look()
    return await probed(gateway)


async def served(gateway: Running) -> str:
    async with gateway.post(ASKED) as response:
        await response.read()
        return response.headers["x-headrace-provider"]


async def test_nothing_is_probed_unless_the_file_says_so(
    tmp_path: Path, first: FakeUpstream, second: FakeUpstream
) -> None:
    async with probing(tmp_path, first, second) as (gateway, clock):
        assert await probe(gateway, clock, 3600) == {"ill": [], "probes": []}
    assert first.received == []


async def test_a_dead_provider_is_found_and_found_well_again_without_a_callers_request(
    tmp_path: Path, first: FakeUpstream, second: FakeUpstream
) -> None:
    first.answer(failing(500), failing(500), failing(500), LISTED, chat("back"))
    every = Probe(every=10)
    async with probing(tmp_path, first, second, provider=every) as (gateway, clock):
        for _ in range(3):
            said = await probe(gateway, clock, 12)
        assert [(one["target"], one["state"]) for one in said["ill"]] == [("up-first", "open")]
        assert await served(gateway) == "up-second"
        clock.now += 5  # its rest is over: its probe tries it, callers do not
        assert await served(gateway) == "up-second"
        assert (await probe(gateway, clock, 0))["ill"] == []
        assert await served(gateway) == "up-first"
    assert [(one.method, one.path) for one in first.received] == [
        *[("GET", "/v1/models")] * 4,
        ("POST", "/v1/chat/completions"),
    ]


async def test_a_models_probe_asks_for_one_token_and_its_cost_is_told(
    tmp_path: Path, first: FakeUpstream, second: FakeUpstream
) -> None:
    first.answer(TOKEN)
    async with probing(tmp_path, first, second, model=Probe(every=10)) as (gateway, clock):
        (one,) = (await probe(gateway, clock, 12))["probes"]
        assert (one["target"], one["said"], one["sent"]) == ("up-first/real-first", "ok", 1)
        assert one["cost"] > 0
        async with gateway.http.get(gateway.url + "/metrics") as response:
            told = await response.text()
        assert 'headrace_probes_total{target="up-first/real-first"} 1.0' in told
        assert 'headrace_probes_cost_dollars_total{target="up-first/real-first"}' in told
        assert await gateway.records() == []  # it is nobody's call
    assert first.received[0].body["max_tokens"] == 1


async def test_who_is_called_is_not_probed(
    tmp_path: Path, first: FakeUpstream, second: FakeUpstream
) -> None:
    async with probing(tmp_path, first, second, provider=Probe(every=10)) as (gateway, clock):
        for _ in range(5):
            assert await served(gateway) == "up-first"
            clock.now += 9
            gateway.app.probes.look()
        assert await served(gateway) == "up-first"
        (one,) = (await probe(gateway, clock, 9))["probes"]
        assert one["sent"] == 0
        (one,) = (await probe(gateway, clock, 2))["probes"]
        assert one["sent"] == 1


@pytest.mark.parametrize("kind", ["provider", "model"])
async def test_a_silent_target_has_one_probe_at_a_time_which_ends_as_a_failure(
    tmp_path: Path, first: FakeUpstream, second: FakeUpstream, kind: str
) -> None:
    first.answer(Script([Stall()]))
    probe_of: Any = {kind: Probe(every=1, timeout=0.05)}
    async with probing(tmp_path, first, second, **probe_of) as (gateway, clock):
        for _ in range(5):
            clock.now += 2
            gateway.app.probes.look()
        (one,) = (await probed(gateway))["probes"]
        assert (one["sent"], one["failed"]) == (1, 1)
        assert one["said"] == "No answer came within 0.05 s."
        for _ in range(2):
            said = await probe(gateway, clock, 2)
        assert len(said["ill"]) == 1


async def test_a_probe_that_is_refused_says_nothing_and_callers_try_as_without_it(
    tmp_path: Path, first: FakeUpstream, second: FakeUpstream
) -> None:
    async with probing(tmp_path, first, second, model=Probe(every=10)) as (gateway, clock):
        first.answer(failing(500))
        for _ in range(3):
            assert await served(gateway) == "up-second"
        first.answer(failing(400, "max_tokens: expected at least 16"), chat("well"))
        said = await probe(gateway, clock, 6)
        assert said["probes"][0]["failed"] == 0
        gateway.app.probes.look()
        assert await served(gateway) == "up-first"
        assert (await probe(gateway, clock, 60))["probes"][0]["sent"] == 1


async def test_a_probe_under_way_does_not_hold_up_the_end(
    tmp_path: Path, first: FakeUpstream, second: FakeUpstream
) -> None:
    gate = Gate()
    first.answer(Script([gate]))
    async with asyncio.timeout(5):
        async with probing(tmp_path, first, second, provider=Probe(every=1)) as (gateway, clock):
            clock.now += 2
            gateway.app.probes.look()
            await gate.reached.wait()


def test_a_probe_that_cannot_be_is_refused_with_line_and_field(tmp_path: Path) -> None:
    file = tmp_path / "headrace.yaml"
    file.write_text(
        "providers:\n  aws: {dialect: bedrock, region: us-east-1, probe: {every: 5}}\n"
        "models:\n  here: {source: small, probe: {every: 5}}\n"
    )
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    lines = str(caught.value).splitlines()
    assert ":2: providers.aws.probe: bedrock lists no models" in lines[0]
    assert ":4: models.here.probe: our own engine" in lines[1]
