"""Adapters over HTTP: from the file, and loaded and dropped while the platform serves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from headrace.config.history import configuration_of
from headrace.config.schema import Configuration, Engine, Log, Model
from headrace.gateway.reload import NeedsRestart
from tests.fakes.adapter import write_adapter
from tests.fakes.gateway import COMPLETIONS, Running, configured, running
from tests.fakes.upstream import FakeUpstream
from tests.unit.registry.source import Source, serving

ADMIN = "/admin/adapters"
OTHER = "other"  # a model of an upstream


def configuration(directory: Path, upstream: FakeUpstream, **models: Model) -> Configuration:
    plain = configured(directory, upstream)
    return structs.replace(
        plain,
        engine=Engine(backend="reference", kv_tokens=2048),
        models={"base": Model(source="ref"), **models, OTHER: plain.models["first"]},
        routes=(),
        log=Log(directory=str(directory)),
    )


@pytest.fixture
async def gateway(tiny: Path, tmp_path: Path, first: FakeUpstream) -> AsyncIterator[Running]:
    filed = Model(source="ref", adapter="filed#1")
    models = {"ref": tiny, "filed#1": write_adapter(tmp_path / "filed", 5)}
    async with running(configuration(tmp_path, first, filed=filed), models) as started:
        yield started


def body(model: str, **changes: Any) -> dict[str, Any]:
    return {"model": model, "prompt": "Hi", "max_tokens": 8, "temperature": 0, **changes}


async def said(gateway: Running, model: str, **changes: Any) -> tuple[int, str]:
    """Status, and the text or the error's code and field."""
    async with gateway.post(body(model, **changes), COMPLETIONS) as response:
        answer = await response.json()
        if response.status == 200:
            return 200, answer["choices"][0]["text"]
        return response.status, f"{answer['error']['code']} {answer['error']['param']}"


async def load(gateway: Running, name: str, adapter: Path, model: str = "base") -> int:
    fields = {"name": name, "model": model, "adapter": str(adapter)}
    async with gateway.post(fields, ADMIN) as response:
        return response.status


async def drop(gateway: Running, name: str) -> int:
    async with gateway.http.delete(f"{gateway.url}{ADMIN}/{name}") as response:
        return response.status


async def names(gateway: Running) -> list[str]:
    async with gateway.http.get(f"{gateway.url}/v1/models") as response:
        return [one["id"] for one in (await response.json())["data"]]


async def test_a_model_of_the_file_may_have_an_adapter(gateway: Running) -> None:
    base, filed = await said(gateway, "base"), await said(gateway, "filed")
    assert base[0] == filed[0] == 200
    assert base != filed
    assert set(await names(gateway)) == {"base", "filed", OTHER}


async def test_an_adapter_is_a_model_from_its_load_to_its_drop(
    gateway: Running, tmp_path: Path
) -> None:
    base, version = await said(gateway, "base"), gateway.app.services.version
    assert await said(gateway, "a/b") == (404, "model_not_found model")
    assert await load(gateway, "a/b", write_adapter(tmp_path / "one", 1)) == 200
    assert "a/b" in await names(gateway)
    one = await said(gateway, "a/b")
    assert one[0] == 200
    assert one != base
    record = (await gateway.records())[-1]
    assert record.version == gateway.app.services.version != version
    assert await drop(gateway, "a/b") == 200
    assert await said(gateway, "a/b") == (404, "model_not_found model")
    assert await drop(gateway, "a/b") == 404
    assert await said(gateway, "base") == base


async def test_an_adapter_comes_from_a_hub(
    gateway: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_adapter(tmp_path / "one", 1)
    assert await load(gateway, "one", path) == 200
    place = "org/adapter"
    found = {file.name: file.read_bytes() for file in path.iterdir()}
    listing = {"sha": "c0ffee", "siblings": [{"rfilename": name} for name in found]}
    files = {f"/{place}/resolve/c0ffee/{name}": content for name, content in found.items()}
    files[f"/api/models/{place}"] = json.dumps(listing).encode()
    with serving(Source(files=files)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
        fields = {"name": "far", "model": "base", "adapter": f"hf:{place}"}
        async with gateway.post(fields, ADMIN) as response:
            assert response.status == 200
        async with gateway.post({**fields, "adapter": "hf:org/absent"}, ADMIN) as response:
            refused = (await response.json())["error"]
    assert refused["param"] == "adapter"
    assert "org/absent" in refused["message"]
    assert await said(gateway, "far") == await said(gateway, "one")


async def test_what_an_adapter_answered_is_not_the_answer_of_the_next_of_its_name(
    gateway: Running, tmp_path: Path
) -> None:
    path = write_adapter(tmp_path / "one", 1)
    assert await load(gateway, "one", path) == 200
    before = await said(gateway, "one")
    assert await load(gateway, "one", write_adapter(path, 2)) == 200
    assert await said(gateway, "one") != before
    assert len([*gateway.app.services.configuration.models]) == 4


async def test_a_stream_ends_with_the_adapter_that_is_dropped_under_it(
    gateway: Running, tmp_path: Path
) -> None:
    assert await load(gateway, "one", write_adapter(tmp_path / "one", 1)) == 200
    whole = await said(gateway, "one", max_tokens=300, ignore_eos=True)
    streams = asyncio.gather(
        *(said(gateway, "one", max_tokens=300, ignore_eos=True, user=str(i)) for i in range(3))
    )
    local: Any = gateway.app.services.providers["local"]
    while local.engines["ref"].counters.running < 3:
        await asyncio.sleep(0.005)
    assert await drop(gateway, "one") == 200
    assert await streams == [whole] * 3


FILE = """\
engine: {{backend: reference, kv_tokens: 2048}}
models:
  base: {{source: ref}}
{extra}
log: {{directory: "{directory}"}}
"""


async def test_an_adapter_outlives_a_change_of_the_file_unless_the_file_takes_its_place(
    tiny: Path, tmp_path: Path
) -> None:
    file = tmp_path / "headrace.yaml"

    def write(extra: str) -> None:
        file.write_text(FILE.format(directory=tmp_path, extra=extra))

    write("")
    async with running(None, {"ref": tiny}, file=file) as gateway:
        reloader = gateway.app.reloader
        assert reloader is not None
        assert await load(gateway, "one", write_adapter(tmp_path / "one", 1)) == 200
        assert await load(gateway, "two", write_adapter(tmp_path / "two", 2)) == 200
        answers = await said(gateway, "one"), await said(gateway, "two")
        write("routes: [{name: r, when: {model: other}, try: [base]}]")
        await reloader.reload()
        assert set(await names(gateway)) == {"base", "one", "two", "other"}
        assert (await said(gateway, "one"), await said(gateway, "two")) == answers
        for record in await gateway.records():
            assert configuration_of(tmp_path, str(record.version)) is not None  # for a replay
        write("  two: {source: ref}")
        await reloader.reload()
        assert await said(gateway, "one") == answers[0]
        assert await said(gateway, "two") == await said(gateway, "base")
        async with gateway.http.get(gateway.url + ADMIN) as response:
            listed = (await response.json())["adapters"]
        assert [one["name"] for one in listed] == ["one"]
        write("  three: {source: ref, adapter: new}")
        with pytest.raises(NeedsRestart, match=r"models\.three: 'new' is loaded when"):
            await reloader.reload()


@pytest.mark.parametrize(
    ("fields", "status", "field"),
    [
        ({"name": "base"}, 400, "name"),
        ({"name": "filed"}, 400, "name"),
        ({"name": " "}, 400, "name"),
        ({"name": "new\nline"}, 400, "name"),
        ({"name": 5}, 400, "name"),
        ({"model": "nowhere"}, 404, "model"),
        ({"model": OTHER}, 400, "model"),
        ({"model": "filed"}, 400, "model"),
        ({"adapter": "/nowhere/at/all"}, 400, "adapter"),
        ({"adapter": "/"}, 400, "adapter"),
        ({"adapter": None}, 400, "adapter"),
        ({"more": "x"}, 400, "more"),
    ],
)
async def test_a_load_that_cannot_be_names_the_field(
    gateway: Running, tmp_path: Path, fields: dict[str, Any], status: int, field: str
) -> None:
    good = {"name": "one", "model": "base", "adapter": str(write_adapter(tmp_path / "one", 1))}
    async with gateway.post({**good, **fields}, ADMIN) as response:
        assert response.status == status
        assert (await response.json())["error"]["param"] == field
    assert len(await names(gateway)) == 3


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"x-forwarded-for": "10.1.2.3"},
        {"forwarded": "for=10.1.2.3"},
        {"sec-fetch-site": "cross-site"},
    ],
)
async def test_only_this_machine_administers(gateway: Running, headers: dict[str, str]) -> None:
    async with gateway.http.get(gateway.url + ADMIN) as response:
        assert await response.json() == {"adapters": []}
    async with gateway.http.get(gateway.url + ADMIN, headers=headers) as response:
        assert response.status == 403


async def test_a_page_cannot_load_an_adapter_without_asking(gateway: Running) -> None:
    """A form or a script of another site can send text, but not JSON."""
    async with gateway.http.post(gateway.url + ADMIN, data="{}") as response:
        assert response.status == 400
