"""One gateway before two fake upstreams, and the official client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from tests.fakes.gateway import Running, configured, running
from tests.fakes.upstream import FakeUpstream


@pytest.fixture
async def gateway(
    first: FakeUpstream, second: FakeUpstream, tmp_path: Path
) -> AsyncIterator[Running]:
    async with running(configured(tmp_path, first, second)) as gateway:
        yield gateway


@pytest.fixture
async def client(gateway: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


@pytest.fixture
async def quick_heartbeat(first: FakeUpstream, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(configured(tmp_path, first), heartbeat=0.02) as gateway:
        yield gateway
