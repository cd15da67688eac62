"""What callers are told where the data directory's disk is full."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.gateway import Running, configured, running
from tests.fakes.upstream import FakeUpstream, chat


@pytest.fixture
async def crowded(first: FakeUpstream, small_disk: Path) -> AsyncIterator[Running]:
    async with running(configured(small_disk, first)) as gateway:
        yield gateway


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    room = os.statvfs(disk)
    ballast.write_bytes(b"\0" * (room.f_bavail * room.f_frsize))
    return ballast


async def upload(gateway: Running, content: bytes) -> aiohttp.ClientResponse:
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", content, filename="in.jsonl")
    return await gateway.http.post(f"{gateway.url}/v1/files", data=form)


async def test_an_upload_that_finds_no_room_says_so_and_leaves_nothing(
    crowded: Running, small_disk: Path
) -> None:
    ballast = fill(small_disk)
    async with await upload(crowded, b"x" * 50_000) as response:
        assert response.status == 507
        assert (await response.json())["error"]["code"] == "insufficient_storage"
    ballast.unlink()
    async with crowded.http.get(f"{crowded.url}/v1/files") as response:
        assert (await response.json())["data"] == []
    assert [one for one in (small_disk / "files").iterdir() if one.name != ".runner"] == []
    async with await upload(crowded, b"x" * 500) as response:
        assert response.status == 200


async def test_a_key_that_finds_no_room_says_so_and_does_not_exist(
    crowded: Running, small_disk: Path
) -> None:
    path = f"{crowded.url}/admin/keys"
    async with crowded.http.post(path, json={"name": "before"}) as response:
        assert response.status == 201
        key = {"authorization": f"Bearer {(await response.json())['key']}"}
    ballast = fill(small_disk)
    made: list[str] = []
    status = 201
    while status == 201:  # pages that the database holds already take some
        name = f"key-{len(made)}"
        async with crowded.http.post(path, json={"name": name}) as response:
            status = response.status
            made += [name] if status == 201 else []
    assert status == 507
    async with crowded.http.get(path) as response:
        assert [one["name"] for one in (await response.json())["keys"]] == ["before", *made]
    ballast.unlink()
    async with crowded.http.post(path, json={"name": "after"}) as response:
        assert response.status == 201
    async with crowded.http.get(f"{crowded.url}/v1/models", headers=key) as response:
        assert response.status == 200


async def test_ready_says_that_calls_are_served_without_a_record(
    crowded: Running, first: FakeUpstream, small_disk: Path
) -> None:
    async def ready() -> dict[str, object]:
        async with crowded.http.get(f"{crowded.url}/health/ready") as response:
            assert response.status == 200
            found: dict[str, object] = await response.json()
            return found

    assert await ready() == {"status": "ready", "recording": True}
    ballast = fill(small_disk)
    body = {"model": "first", "messages": [{"role": "user", "content": "Hi" * 2000}]}
    while (await ready())["recording"]:
        first.answer(chat("Hello"))
        async with crowded.post(body) as response:
            assert response.status == 200
        await crowded.idle()
    ballast.unlink()
    first.answer(chat("Hello"))
    async with crowded.post(body) as response:
        assert response.status == 200
    await crowded.idle()
    assert (await ready())["recording"] is True
