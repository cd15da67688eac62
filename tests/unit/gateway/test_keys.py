"""Who is let in, within what, and what it costs them."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from headrace.config.schema import (
    Configuration,
    Engine,
    Limits,
    Log,
    Match,
    Model,
    Price,
    Route,
    Timeouts,
)
from headrace.gateway.door import Door
from headrace.gateway.keyring import Keyring
from headrace.gateway.keystore import Key, KeyStore
from headrace.protocol.errors import HeadraceError
from tests.fakes.gateway import COMPLETIONS, Running, configured, running
from tests.fakes.upstream import FakeUpstream, Gate, Script, Stall, chat, failing

ASKED: dict[str, Any] = {
    "model": "smart",
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 10,
}


def made(directory: Path, name: str = "search", **limits: Any) -> str:
    """The secret of a new key."""
    store = KeyStore.within(directory)
    try:
        return store.create(Key(id="", digest="", hint="", name=name, **limits))[1]
    finally:
        store.close()


@contextlib.asynccontextmanager
async def keyed(
    directory: Path, upstream: FakeUpstream, limits: Limits | None = None, **key: Any
) -> AsyncIterator[tuple[Running, dict[str, str]]]:
    """A gateway with one key, and the headers that hold it."""
    secret = made(directory, **key)
    settings = replace(configured(directory, upstream), limits=limits or Limits())
    async with running(settings) as gateway:
        yield gateway, {"authorization": f"Bearer {secret}"}


async def status(gateway: Running, headers: dict[str, str], **fields: Any) -> int:
    async with gateway.post({**ASKED, **fields}, **headers) as response:
        await response.read()
        return response.status


async def test_once_there_is_a_key_every_call_needs_one(
    first: FakeUpstream, tmp_path: Path
) -> None:
    async with keyed(tmp_path, first) as (gateway, good):
        assert await status(gateway, {}) == 401
        assert await status(gateway, {"authorization": "Bearer hr-wrong"}) == 401
        assert await status(gateway, {"x_api_key": good["authorization"][7:]}) == 200
        assert await status(gateway, good) == 200
        async with gateway.http.get(f"{gateway.url}/v1/models") as response:
            assert response.status == 401
            assert (await response.json())["error"]["code"] == "invalid_api_key"
        records = await gateway.records()
    assert {record.tenant for record in records} == {"search"}
    assert first.received[0].headers["authorization"] == "Bearer sk-test"


async def test_a_key_that_is_revoked_is_refused_at_once_and_one_made_is_taken(
    first: FakeUpstream, tmp_path: Path
) -> None:
    async with running(configured(tmp_path, first)) as gateway:
        assert await status(gateway, {}) == 200
        admin = f"{gateway.url}/admin/keys"
        async with gateway.http.post(admin, json={"name": "app", "rpm": 100}) as response:
            assert response.status == 201
            secret = (await response.json())["key"]
        good = {"authorization": f"Bearer {secret}"}
        assert (await status(gateway, {}), await status(gateway, good)) == (401, 200)
        async with gateway.http.get(admin) as response:
            listed = await response.text()
            assert '"name":"app"' in listed
            assert secret not in listed
            assert "digest" not in listed
        async with gateway.http.delete(f"{admin}/app") as response:
            assert response.status == 204
        assert await status(gateway, good) == 401


async def test_a_key_revoked_by_another_process_is_refused_soon(
    first: FakeUpstream, tmp_path: Path
) -> None:
    async with keyed(tmp_path, first) as (gateway, good):
        assert await status(gateway, good) == 200
        store = KeyStore.within(tmp_path)
        store.revoke("search")
        store.close()
        async with asyncio.timeout(5):
            while await status(gateway, good) != 401:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "body", [{}, {"name": ""}, {"name": "default"}, {"name": "a", "rpm": 0}, {"name": "a", "x": 1}]
)
async def test_a_bad_wish_for_a_key_is_told_what_is_wrong(
    gateway: Running, body: dict[str, Any]
) -> None:
    async with gateway.http.post(f"{gateway.url}/admin/keys", json=body) as response:
        assert response.status == 400
    cross = {"sec-fetch-site": "cross-site"}
    async with gateway.http.post(
        f"{gateway.url}/admin/keys", json={"name": "a"}, headers=cross
    ) as response:
        assert response.status == 403


async def test_an_expired_key_is_refused(first: FakeUpstream, tmp_path: Path) -> None:
    async with keyed(tmp_path, first, expires=1.0) as (gateway, good):
        assert await status(gateway, good) == 401


async def test_a_key_may_ask_only_for_its_models(first: FakeUpstream, tmp_path: Path) -> None:
    async with keyed(tmp_path, first, models=("smart",)) as (gateway, good):
        assert await status(gateway, good) == 200
        assert await status(gateway, good, model="first") == 403
        async with gateway.http.get(f"{gateway.url}/v1/models", headers=good) as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["smart"]


async def test_over_the_limit_the_official_client_is_told_when_to_come_back(
    first: FakeUpstream, tmp_path: Path
) -> None:
    async with (
        keyed(tmp_path, first, rpm=2) as (gateway, good),
        openai.AsyncOpenAI(
            base_url=f"{gateway.url}/v1", api_key=good["authorization"][7:], max_retries=0
        ) as client,
    ):
        answer = await client.chat.completions.with_raw_response.create(**ASKED)
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-remaining-requests"] == "1"
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
        await client.chat.completions.create(**ASKED)
        with pytest.raises(openai.RateLimitError, match="2 requests per minute") as caught:
            await client.chat.completions.create(**ASKED)
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 61


async def test_tokens_a_minute_are_reserved_and_corrected_to_what_was_used(
    first: FakeUpstream, tmp_path: Path
) -> None:
    async with keyed(tmp_path, first, tpm=100) as (gateway, good):
        assert await status(gateway, good, max_tokens=95) == 200  # uses 9
        assert await status(gateway, good, max_tokens=95) == 429
        assert await status(gateway, good, max_tokens=80) == 200


@pytest.mark.parametrize("which", ["key", "server"])
async def test_calls_at_once_are_bounded_and_a_place_is_free_when_one_ends(
    first: FakeUpstream, tmp_path: Path, which: str
) -> None:
    gate = Gate()
    first.answer(Script([gate, *chat("one").parts]), chat("two"))
    limits = Limits(concurrent=1) if which == "server" else None
    key = {"concurrent": 1} if which == "key" else {}
    async with keyed(tmp_path, first, limits, **key) as (gateway, good):
        running_one = asyncio.create_task(status(gateway, good))
        await first.arrived()
        assert await status(gateway, good) == 429
        gate.opened.set()
        assert await running_one == 200
        assert await status(gateway, good) == 200


async def test_one_model_may_have_its_own_limits(
    first: FakeUpstream, second: FakeUpstream, tmp_path: Path
) -> None:
    whole = configured(tmp_path, first, second)
    models = {**whole.models, "first": replace(whole.models["first"], limits=Limits(rpm=1))}
    async with running(replace(whole, models=models)) as gateway:
        assert [await status(gateway, {}, model="first") for _ in range(2)] == [200, 429]
        assert await status(gateway, {}, model="second") == 200


# A call costs 7 prompt and 2 answer tokens, $27e-6; it reserves the most it could cost: 4 prompt
# tokens (a character each) and 10 of answer, $104e-6.
COST, MOST = 27e-6, 104e-6


async def test_calls_at_once_cannot_overrun_a_budget(first: FakeUpstream, tmp_path: Path) -> None:
    gates = [Gate() for _ in range(3)]
    first.answer(*(Script([gate, *chat("one").parts]) for gate in gates), chat("late"))
    async with keyed(tmp_path, first, budget=3.5 * MOST) as (gateway, good):
        asking = [asyncio.create_task(status(gateway, good)) for _ in range(20)]
        await first.arrived(3)
        for gate in gates:
            gate.opened.set()
        statuses = await asyncio.gather(*asking)
    assert sorted(statuses).count(200) >= 3
    store = KeyStore.within(tmp_path)
    (key,) = store.every()
    store.close()
    assert key.spent == pytest.approx(statuses.count(200) * COST)
    assert key.budget is not None
    assert key.spent <= key.budget


async def test_what_is_spent_outlives_the_server_and_the_end_is_said(
    first: FakeUpstream, tmp_path: Path
) -> None:
    secret = made(tmp_path, budget=MOST + 2.5 * COST)
    good = {"authorization": f"Bearer {secret}"}
    statuses = []
    for _ in range(5):
        async with running(configured(tmp_path, first)) as gateway:
            statuses.append(await status(gateway, good))
            async with gateway.post(ASKED, **good) as response:
                last = await response.json()
                statuses.append(response.status)
    assert statuses == [200, 200, 200, *[429] * 7]
    assert last["error"]["code"] == "insufficient_quota"


@pytest.mark.parametrize("ending", ["failed", "cancelled"])
async def test_a_call_that_does_not_end_well_gives_back_what_it_did_not_use(
    first: FakeUpstream, tmp_path: Path, ending: str
) -> None:
    first.answer(failing(500) if ending == "failed" else Script([Stall()]), chat("good"))
    async with keyed(tmp_path, first, budget=1.2 * MOST) as (gateway, good):
        asking = asyncio.create_task(status(gateway, good))
        received = await first.arrived()
        if ending == "cancelled":
            asking.cancel()
            await received.left.wait()
            await gateway.idle()
        else:
            assert await asking == 502
        assert await status(gateway, good) == 200


async def test_a_key_pays_for_the_failed_attempts_of_its_calls_too(
    first: FakeUpstream, second: FakeUpstream, tmp_path: Path
) -> None:
    """The one that was silent has read the prompt, and bills it."""
    secret = made(tmp_path, budget=1.0)
    first.answer(Script([Stall()]))
    timeouts = Timeouts(first_token=0.05, whole=0.05)
    async with running(configured(tmp_path, first, second, timeouts=timeouts)) as gateway:
        assert await status(gateway, {"authorization": f"Bearer {secret}"}) == 200
        (record,) = await gateway.records()
        failed, served = record.attempts
        assert failed.usage is not None
        assert (failed.usage.prompt_tokens, failed.usage.provenance) == (1, "estimated")
        assert served.usage is not None
        assert served.usage.provenance == "provider"
        assert record.cost == (failed.cost or 0) + (served.cost or 0)
        store = gateway.app.services.keyring.opened()
        async with asyncio.timeout(5):
            while not any(key.spent == pytest.approx(record.cost) for key in store.every()):
                await asyncio.sleep(0.02)


async def test_where_the_budgets_cannot_be_read_nothing_is_spent_and_others_go_on(
    first: FakeUpstream, tmp_path: Path
) -> None:
    free = made(tmp_path, "free")
    async with keyed(tmp_path, first, budget=1.0) as (gateway, good):
        with contextlib.closing(sqlite3.connect(tmp_path / "keys.db")) as database:
            database.execute("ALTER TABLE leases RENAME TO gone")
            async with gateway.post(ASKED, **good) as response:
                assert response.status == 503
                assert response.headers["retry-after"] == "1"
            assert first.received == []
            assert await status(gateway, {"authorization": f"Bearer {free}"}) == 200
            database.execute("ALTER TABLE gone RENAME TO leases")
        assert await status(gateway, good) == 200


async def test_a_flood_of_unknown_keys_never_reaches_the_store(
    first: FakeUpstream, tmp_path: Path
) -> None:
    async with keyed(tmp_path, first) as (gateway, good):
        with contextlib.closing(sqlite3.connect(tmp_path / "keys.db")) as database:
            database.execute("ALTER TABLE keys RENAME TO gone")
            for number in range(200):
                assert await status(gateway, {"authorization": f"Bearer hr-{number}"}) == 401
            assert await status(gateway, good) == 200


async def test_a_tenant_cannot_tell_from_cache_or_prefix_what_another_asked(
    tiny: Path, tmp_path: Path
) -> None:
    """Neither headers nor usage say so, and what is computed again takes as long as the first."""
    keys = {name: {"authorization": f"Bearer {made(tmp_path, name)}"} for name in ("a", "b")}
    settings = Configuration(
        engine=Engine(backend="reference", kv_tokens=2048),
        models={"tiny": Model(source="tiny")},
        log=Log(directory=str(tmp_path)),
    )
    asked = {"model": "tiny", "prompt": "a secret " * 30, "max_tokens": 2, "temperature": 0}
    async with running(settings, {"tiny": tiny}) as gateway:

        async def seen(name: str, cache: str) -> tuple[str, int]:
            headers = {**keys[name], "x_headrace_cache": cache}
            async with gateway.post(asked, COMPLETIONS, **headers) as response:
                usage = (await response.json())["usage"]
                told = usage["prompt_tokens_details"]["cached_tokens"]
                return response.headers["x-headrace-cache"], told

        assert await seen("a", "on") == ("miss", 0)
        assert (await seen("a", "on"))[0] == "hit"
        assert (await seen("a", "off"))[1] > 0
        assert await seen("b", "on") == ("miss", 0)


async def test_an_answer_without_a_bound_gets_one_where_the_key_has_a_budget(
    first: FakeUpstream, tmp_path: Path
) -> None:
    async with keyed(tmp_path, first, budget=1.0) as (gateway, good):
        assert await status(gateway, good, max_tokens=None) == 200
    assert first.received[0].body["max_tokens"] == 1024


async def test_a_key_with_a_budget_is_not_let_to_a_model_whose_price_is_not_known(
    first: FakeUpstream, tmp_path: Path
) -> None:
    secret = made(tmp_path, budget=1.0)
    settings = configured(tmp_path, first)
    unknown = Model(source="new", provider="up-first")
    free = replace(unknown, price=Price(input=0, output=0))
    route = Route(name="both", attempts=("unknown", "first"), when=Match(model="both"))
    models = {**settings.models, "unknown": unknown, "free": free}
    async with running(replace(settings, models=models, routes=(route,))) as gateway:
        good = {"authorization": f"Bearer {secret}"}
        async with gateway.post({**ASKED, "model": "unknown"}, **good) as response:
            assert response.status == 400
            assert "its price is not known" in (await response.json())["error"]["message"]
        assert await status(gateway, good, model="free") == 200
        async with gateway.post({**ASKED, "model": "both"}, **good) as response:
            assert response.headers["x-headrace-model"] == "first"
    assert [received.body["model"] for received in first.received] == ["new", "real-first"]


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    await Response("in")(scope, receive, send)


def refuse(request: Request, error: HeadraceError) -> Response:
    return Response(error.message, error.status)


@pytest.mark.parametrize(
    ("path", "client", "headers", "let_in"),
    [
        ("/", "127.0.0.1", {}, True),
        ("/", "::1", {}, True),
        ("/", "10.0.0.1", {}, False),
        ("/api/calls", "10.0.0.1", {}, False),
        ("/admin/keys", "127.0.0.1", {"x-forwarded-for": "10.0.0.1"}, False),
        ("/admin/keys", "10.0.0.1", {"authorization": "Bearer wrong"}, False),
        ("/admin/keys", "10.0.0.1", {"authorization": "Bearer admin-secret"}, True),
        ("/health/ready", "10.0.0.1", {}, True),
        ("/metrics", "10.0.0.1", {}, True),
    ],
)
async def test_the_page_and_the_admin_api_are_for_this_machine_or_the_admin_key(
    first: FakeUpstream,
    tmp_path: Path,
    path: str,
    client: str,
    headers: dict[str, str],
    let_in: bool,
) -> None:
    keyring = Keyring(tmp_path, configured(tmp_path, first), lambda: 0.0, lambda: 0.0)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "client": (client, 1), "headers": raw, "method": "GET"}
    await Door(inside, keyring, "admin-secret", refuse)(scope, receive, send)
    assert sent[0]["status"] == (200 if let_in else 403)
