"""The read API and the page's files, as a browser or a curious stranger meets them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn
from starlette.applications import Starlette

from headrace.console import routes
from headrace.console.routes import MOST_STREAMS
from headrace.console.rows import PREVIEW, preview
from headrace.console.static_files import STATIC
from headrace.observability.record import CallRecord
from headrace.observability.store import CallStore, store_url


class Server:
    """The console's routes over a store, on a real port."""

    def __init__(self, store: CallStore, port: int) -> None:
        self.store = store
        self.url = f"http://127.0.0.1:{port}"
        self.stopping = False

    async def json(self, path: str, status: int = 200, **headers: str) -> Any:
        async with (
            aiohttp.ClientSession() as session,
            session.get(self.url + path, headers=headers) as response,
        ):
            assert response.status == status, await response.text()
            return await response.json()


@pytest.fixture
async def server(tmp_path: Path, free_port: int) -> AsyncIterator[Server]:
    store = CallStore(store_url(tmp_path))
    served = Server(store, free_port)
    app = Starlette(routes=routes(store, "models.example", lambda: served.stopping))
    config = uvicorn.Config(app, port=free_port, lifespan="off", log_config=None)
    running = uvicorn.Server(config)
    task = asyncio.create_task(running.serve())
    while not running.started:
        await asyncio.sleep(0.01)
    yield served
    served.stopping = running.should_exit = True
    await task
    store.close()


def record(number: int, **changes: Any) -> CallRecord:
    fields: dict[str, Any] = {
        "id": f"req_{number}",
        "started_at": 1_700_000_000.0 + number,
        "tenant": "default",
        "endpoint": "chat",
        "model": "small",
        "stream": True,
        "status": "ok",
        "http_status": 200,
        "duration": 0.5,
        "input": {"messages": [{"role": "user", "content": f"question {number}"}]},
        "output": {"text": "<b>bold</b>"},
    }
    return CallRecord(**{**fields, **changes})


async def test_two_calls_of_one_id_are_two_rows(server: Server) -> None:
    server.store.insert([record(1), record(1, started_at=1_700_000_009.0)])
    page = await server.json("/api/calls")
    assert [row["started_at"] for row in page["calls"]] == [1_700_000_009.0, 1_700_000_001.0]


async def test_pages_go_back_through_all_calls(server: Server) -> None:
    server.store.insert([record(n) for n in range(7)])
    seen: list[str] = []
    before = ""
    while True:
        page = await server.json(f"/api/calls?limit=3{before}")
        seen += [row["id"] for row in page["calls"]]
        if page["next"] is None:
            break
        before = f"&before={page['next']}"
    assert seen == [f"req_{n}" for n in reversed(range(7))]


async def test_a_row_is_a_line_and_a_call_is_all_of_it(server: Server) -> None:
    server.store.insert([record(1)])
    (row,) = (await server.json("/api/calls"))["calls"]
    assert row["preview"] == "question 1"
    assert "output" not in row
    whole = await server.json("/api/calls/req_1")
    assert whole["output"] == {"text": "<b>bold</b>"}


async def test_an_unknown_call_is_404_in_json(server: Server) -> None:
    assert "no call" in (await server.json("/api/calls/absent", 404))["error"]["message"]


async def test_a_call_that_has_not_ended_can_be_waited_for(server: Server) -> None:
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        waiting = group.create_task(server.json("/api/calls/req_1?wait=9"))
        server.store.insert([record(1)])
    assert waiting.result()["id"] == "req_1"
    await server.json("/api/calls/req_2?wait=1", 404)
    server.stopping = True
    await server.json("/api/calls/req_2?wait=60", 404)


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=nan", "limit=1e9", "limit="])
async def test_a_bad_number_is_named(server: Server, query: str) -> None:
    assert "'limit'" in (await server.json(f"/api/calls?{query}", 400))["error"]["message"]


async def test_the_summary_counts_its_window(server: Server) -> None:
    server.store.insert([record(1)])
    assert (await server.json("/api/summary?seconds=60"))["calls"] == 0
    assert (await server.json("/api/summary?seconds=300000000"))["calls"] == 1


async def read_events(response: aiohttp.ClientResponse, count: int) -> list[str]:
    found: list[str] = []
    async for line in response.content:
        if line.startswith(b"data: "):
            found.append(json.loads(line[6:])["id"])
        if len(found) == count:
            break
    return found


async def test_a_stream_gives_each_new_call_once(server: Server) -> None:
    server.store.insert([record(1), record(2)])
    async with (
        asyncio.timeout(10),
        aiohttp.ClientSession() as session,
        session.get(server.url + "/api/stream?after=req_1") as response,
    ):
        assert response.content_type == "text/event-stream"
        assert await read_events(response, 1) == ["req_2"]
        server.store.insert([record(3), record(4)])
        assert await read_events(response, 2) == ["req_3", "req_4"]


async def test_a_stream_goes_on_after_a_break(server: Server) -> None:
    server.store.insert([record(n) for n in range(4)])
    async with (
        asyncio.timeout(10),
        aiohttp.ClientSession(headers={"Last-Event-ID": "req_2"}) as session,
        session.get(server.url + "/api/stream?after=req_0") as response,
    ):
        assert await read_events(response, 1) == ["req_3"]


async def test_a_stream_after_an_unknown_call_begins_now(server: Server) -> None:
    server.store.insert([record(1)])
    async with (
        asyncio.timeout(10),
        aiohttp.ClientSession() as session,
        session.get(server.url + "/api/stream?after=absent") as response,
    ):
        await response.content.readline()
        server.store.insert([record(2)])
        assert await read_events(response, 1) == ["req_2"]


async def test_streams_over_the_bound_are_refused_at_once_and_places_come_free(
    server: Server,
) -> None:
    async with asyncio.timeout(20), aiohttp.ClientSession() as session:
        url = server.url + "/api/stream"
        opened = await asyncio.gather(*(session.get(url) for _ in range(MOST_STREAMS + 8)))
        assert sorted(r.status for r in opened) == [200] * MOST_STREAMS + [503] * 8
        for response in opened:
            response.close()
        while (again := await session.get(url)).status == 503:
            again.close()
        assert again.status == 200
        again.close()


async def test_a_stream_ends_when_the_server_stops(server: Server) -> None:
    async with (
        asyncio.timeout(10),
        aiohttp.ClientSession() as session,
        session.get(server.url + "/api/stream") as response,
    ):
        server.stopping = True
        assert b"retry" in await response.content.read()


@pytest.mark.parametrize("path", ["/api/calls", "/api/calls/x", "/api/summary", "/api/stream"])
async def test_a_strangers_name_or_page_gets_nothing(server: Server, path: str) -> None:
    await server.json(path, 403, Host="attacker.example")
    await server.json(path, 403, **{"Sec-Fetch-Site": "cross-site"})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "models.example"])
async def test_an_address_or_the_configured_name_is_served(server: Server, host: str) -> None:
    await server.json("/api/calls", Host=host)


async def test_the_page_runs_only_its_own_files(server: Server) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(server.url + "/") as response,
    ):
        page = await response.text()
        policy = response.headers["Content-Security-Policy"]
        etag = response.headers["ETag"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        (inline,) = re.findall(r'<script type="importmap">(.*?)</script>', page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
        for file in re.findall(r'(?:src|href)="(/[^"]+)"', page):
            async with session.get(server.url + file) as found:
                assert found.status == 200, file
                assert found.headers["X-Content-Type-Options"] == "nosniff"
        async with session.get(server.url + "/", headers={"If-None-Match": etag}) as again:
            assert again.status == 304


@pytest.mark.parametrize("path", ["vendor/README.md", "../routes.py", "%2e%2e/routes.py", "x.js"])
async def test_only_the_pages_files_are_served(server: Server, path: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/console/{path}") as r:
        assert r.status == 404


def test_the_page_never_makes_markup_of_text_and_names_no_other_host() -> None:
    ours = [path for path in STATIC.iterdir() if path.suffix in {".js", ".html", ".css"}]
    assert ours
    for path in ours:
        text = path.read_text()
        for danger in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert danger not in text, f"{path.name}: {danger}"
        assert "//" not in re.sub(r"//[ #].*|/\*.*?\*/|https?://www\.w3\.org", "", text), path.name


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (None, ""),
        ({"prompt": "one\n  two"}, "one two"),
        ({"prompt": [1, 2, 3]}, ""),
        ({"messages": [{"role": "user", "content": None}]}, ""),
        ({"messages": [{"content": [{"type": "text", "text": "a"}, {"type": "image"}]}]}, "a"),
        ({"messages": "nonsense"}, ""),
        ({"prompt": "x" * 10_000}, "x" * PREVIEW),
    ],
)
def test_a_preview_is_one_short_line_of_any_input(recorded: Any, expected: str) -> None:
    assert preview(recorded) == expected
