"""The keys of the providers are where they are needed, and nowhere else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from headrace.config.schema import Engine, Model
from tests.fakes.gateway import configured, running
from tests.fakes.upstream import FakeUpstream


async def test_an_engines_process_does_not_get_the_providers_keys(
    first: FakeUpstream, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-test")
    monkeypatch.setenv("TEST_OTHER", "stays")
    settings = configured(tmp_path, first)
    settings = structs.replace(
        settings,
        engine=Engine(backend="reference", kv_tokens=512),
        models={**settings.models, "tiny": Model(source="tiny")},
    )
    async with running(settings, {"tiny": tiny}) as gateway:
        local: Any = gateway.app.services.providers["local"]
        process = local.engines["tiny"].process
        path = Path(f"/proc/{process.pid}/environ")
        environ = (await asyncio.to_thread(path.read_bytes)).split(b"\0")
    assert b"TEST_OTHER=stays" in environ
    assert not any(entry.startswith(b"TEST_KEY=") for entry in environ)
