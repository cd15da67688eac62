"""A gateway before two upstreams that speak different dialects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.config.schema import Configuration, Log, Model, UpstreamProvider
from tests.fakes import anthropic as theirs
from tests.fakes.gateway import Running, running
from tests.fakes.upstream import FakeUpstream


def upstreams(directory: Path, claude: FakeUpstream, gpt: FakeUpstream) -> Configuration:
    """`claude` speaks Anthropic's dialect, `gpt` OpenAI's."""
    return Configuration(
        providers={
            "a": UpstreamProvider(
                base_url=claude.base_url, dialect="anthropic", key="env:TEST_KEY"
            ),
            "o": UpstreamProvider(base_url=gpt.base_url, key="env:TEST_KEY"),
        },
        models={
            "claude": Model(source="claude-real", provider="a"),
            "gpt": Model(source="gpt-real", provider="o"),
        },
        log=Log(directory=str(directory)),
    )


@pytest.fixture
async def claude() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        upstream.answer(theirs.hello())
        yield upstream


@pytest.fixture
async def gpt() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture
async def gateway(
    claude: FakeUpstream, gpt: FakeUpstream, tmp_path: Path
) -> AsyncIterator[Running]:
    async with running(upstreams(tmp_path, claude, gpt)) as gateway:
        yield gateway
