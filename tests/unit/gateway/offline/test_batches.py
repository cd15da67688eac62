"""Files and batches through the official client, over a fake upstream."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from msgspec.structs import replace

from headrace.config.schema import Batches, Configuration, Files, Log, Model
from headrace.gateway.keystore import Key, KeyStore
from headrace.providers.local import LocalProvider
from tests.fakes.gateway import Running, configured, running
from tests.fakes.upstream import (
    JSON,
    FakeUpstream,
    Gate,
    Script,
    chat,
    completions,
    failing,
)

CHAT: Any = "/v1/chat/completions"
VECTOR = Script(
    [
        b'{"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [1.0]}],'
        b'"usage": {"prompt_tokens": 7, "total_tokens": 7}}'
    ],
    headers=JSON,
)


def line(name: str, **fields: Any) -> dict[str, Any]:
    """A line of a batch's input."""
    body = {"model": "smart", "messages": [{"role": "user", "content": name}], "max_tokens": 9}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": {**body, **fields}}


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def client_of(gateway: Running, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


async def submitted(client: openai.AsyncOpenAI, content: bytes, endpoint: Any = CHAT) -> str:
    """The id of a batch over `content`."""
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = await client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h"
    )
    return batch.id


async def ended(client: openai.AsyncOpenAI, batch_id: str) -> Any:
    """The batch, once it is over."""
    async with asyncio.timeout(20):
        while True:
            batch = await client.batches.retrieve(batch_id)
            if batch.status not in ("validating", "in_progress", "finalizing", "cancelling"):
                return batch
            await asyncio.sleep(0.02)


async def lines_of(client: openai.AsyncOpenAI, file_id: str) -> list[dict[str, Any]]:
    content = await client.files.content(file_id)
    return [json.loads(text) for text in content.text.splitlines()]


@contextlib.asynccontextmanager
async def of(gateway: Running, key: str = "none") -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(gateway, key) as client:
        yield client


def made(directory: Path, name: str, **limits: Any) -> str:
    store = KeyStore.within(directory)
    try:
        return store.create(Key(id="", digest="", hint="", name=name, **limits))[1]
    finally:
        store.close()


async def test_a_batch_answers_every_line_and_tells_usage_and_failures(
    first: FakeUpstream, tmp_path: Path
) -> None:
    first.answer(chat("A"), chat("B"), failing(400, "no such thing"), chat("C"))
    settings = replace(configured(tmp_path, first), batches=Batches(concurrency=1))
    async with running(settings) as gateway, of(gateway) as client:
        batch_id = await submitted(client, jsonl(*(line(f"q{i}") for i in range(4))))
        batch = await ended(client, batch_id)
        assert batch.status == "completed"
        assert batch.request_counts.to_dict() == {"total": 4, "completed": 3, "failed": 1}
        assert (batch.usage.input_tokens, batch.usage.output_tokens) == (21, 6)
        answers = await lines_of(client, batch.output_file_id)
        assert [one["custom_id"] for one in answers] == ["q0", "q1", "q3"]
        assert answers[0]["response"]["body"]["choices"][0]["message"]["content"] == "A"
        assert answers[0]["response"]["status_code"] == 200
        (failure,) = await lines_of(client, batch.error_file_id)
        assert (failure["custom_id"], failure["response"]["status_code"]) == ("q2", 400)
        records = await gateway.records()
        ids = {one["response"]["request_id"] for one in [*answers, failure]}
        assert {record.id for record in records} == ids


BODIES: dict[str, tuple[dict[str, Any], Any, str]] = {
    "/v1/completions": ({"prompt": "Hi"}, completions("A"), "text_completion"),
    "/v1/embeddings": ({"input": "Hi"}, VECTOR, "list"),
    "/v1/responses": ({"input": "Hi"}, chat("A"), "response"),
    "/v1/messages": (
        {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5},
        chat("A"),
        "message",
    ),
}


@pytest.mark.parametrize("url", BODIES)
async def test_a_batch_goes_to_every_endpoint(
    first: FakeUpstream, tmp_path: Path, url: str
) -> None:
    body, script, kind = BODIES[url]
    busy = failing(429, headers={"retry-after": "0"})
    first.answer(busy, failing(503, headers={"retry-after": "0"}), script)
    asked = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": "smart", **body}}
    settings = replace(configured(tmp_path, first), batches=Batches(concurrency=1))
    async with running(settings) as gateway, of(gateway) as client:
        batch = await ended(client, await submitted(client, jsonl(asked), url))
        assert batch.status == "completed"
        (one,) = await lines_of(client, batch.output_file_id)
        said = one["response"]["body"]
        assert said.get("object", said.get("type")) == kind
        assert batch.usage.input_tokens == 7
        assert batch.usage.total_tokens == said["usage"].get("total_tokens", 9)


async def test_a_batch_is_known_until_its_files_are_gone(
    first: FakeUpstream, tmp_path: Path
) -> None:
    async with running(configured(tmp_path, first)) as gateway, of(gateway) as client:
        batch = await ended(client, await submitted(client, jsonl(line("a"))))
        store, now = gateway.app.runner._store, gateway.app.services.wall()
        for days, files, known in ((29, 2, True), (31, 0, True), (33, 0, False)):
            gateway.app.services.wall = partial(float, now + days * 86_400)
            await asyncio.to_thread(store.sweep)
            assert len([one for one in store.folder.iterdir() if one.name[0] != "."]) == files
            if known:
                assert (await client.batches.retrieve(batch.id)).status == "completed"
        with pytest.raises(openai.NotFoundError):
            await client.batches.retrieve(batch.id)


async def test_every_bad_line_is_told_with_its_number_and_field(
    gateway: Running, client: openai.AsyncOpenAI, first: FakeUpstream
) -> None:
    bad = [
        line("fine"),
        line("fine"),
        {**line("get"), "method": "GET"},
        {**line("url"), "url": "/v1/embeddings"},
        line("hot", temperature=9),
        line("who", model="nobody"),
        line("flow", stream=True),
        {**line("none"), "custom_id": ""},
    ]
    batch = await ended(client, await submitted(client, jsonl(*bad) + b"{not json\n"))
    assert batch.status == "failed"
    told = [(one.line, one.param) for one in batch.errors.data]
    assert told == [
        (2, "custom_id"),
        (3, "method"),
        (4, "url"),
        (5, "body.temperature"),
        (6, "body.model"),
        (7, "body.stream"),
        (8, "custom_id"),
        (9, None),
    ]
    errors = await lines_of(client, batch.error_file_id)
    assert [one["error"]["line"] for one in errors] == [number for number, _ in told]
    assert first.received == []


async def test_what_an_upstream_puts_off_is_asked_again_and_what_it_fails_is_told(
    first: FakeUpstream, tmp_path: Path
) -> None:
    first.answer(failing(429, headers={"retry-after": "0"}), chat("Now"))
    async with running(configured(tmp_path, first)) as gateway, of(gateway) as client:
        batch = await ended(client, await submitted(client, jsonl(line("a"))))
        assert batch.status == "completed"
        assert batch.request_counts.completed == 1


async def test_a_cancelled_batch_hangs_up_and_keeps_what_is_done(
    first: FakeUpstream, tmp_path: Path
) -> None:
    gate = Gate()
    first.answer(chat("done"), Script([gate]))
    settings = replace(configured(tmp_path, first), batches=Batches(concurrency=1))
    async with running(settings) as gateway, of(gateway) as client:
        batch_id = await submitted(client, jsonl(line("a"), line("b"), line("c")))
        await gate.reached.wait()
        assert (await client.batches.cancel(batch_id)).status == "cancelling"
        batch = await ended(client, batch_id)
        assert batch.status == "cancelled"
        assert [one["custom_id"] for one in await lines_of(client, batch.output_file_id)] == ["a"]
        async with asyncio.timeout(5):
            await first.received[1].left.wait()
        with pytest.raises(openai.BadRequestError, match="cancelled cannot be cancelled"):
            await client.batches.cancel(batch_id)
        assert len(first.received) == 2


async def test_a_batch_goes_on_after_a_stop_and_no_line_is_lost_or_told_twice(
    first: FakeUpstream, tmp_path: Path
) -> None:
    gate = Gate()
    first.answer(chat("1"), chat("2"), Script([gate]))
    settings = replace(configured(tmp_path, first), batches=Batches(concurrency=1))
    names = [f"q{i}" for i in range(6)]
    async with running(settings) as gateway, of(gateway) as client:
        batch_id = await submitted(client, jsonl(*map(line, names)))
        await gate.reached.wait()
    first.answer(chat("again"))
    async with running(settings) as gateway, of(gateway) as client:
        batch = await ended(client, batch_id)
        assert batch.status == "completed"
        answers = await lines_of(client, batch.output_file_id)
        assert [one["custom_id"] for one in answers] == names
        assert batch.usage.output_tokens == 2 * len(names)
        assert len(first.received) == len(names) + 1  # the one under way was asked twice


async def test_lines_that_a_window_leaves_undone_are_told_as_expired(
    first: FakeUpstream, tmp_path: Path
) -> None:
    gate = Gate()
    first.answer(chat("in time"), Script([gate]))
    settings = replace(configured(tmp_path, first), batches=Batches(concurrency=1))
    async with running(settings) as gateway, of(gateway) as client:
        batch_id = await submitted(client, jsonl(line("a"), line("b"), line("c")))
        await gate.reached.wait()
        now = gateway.app.services.wall()
        gateway.app.services.wall = lambda: now + 86_401
        batch = await ended(client, batch_id)
        assert batch.status == "expired"
        errors = await lines_of(client, batch.error_file_id)
        assert [(one["custom_id"], one["error"]["code"]) for one in errors] == [
            ("b", "batch_expired"),
            ("c", "batch_expired"),
        ]


async def test_a_tenant_sees_its_own_files_and_batches_only_and_its_key_pays(
    first: FakeUpstream, tmp_path: Path
) -> None:
    mine, theirs = made(tmp_path, "mine", budget=1.0), made(tmp_path, "theirs")
    async with (
        running(configured(tmp_path, first)) as gateway,
        of(gateway, mine) as me,
        of(gateway, theirs) as them,
    ):
        batch = await ended(me, await submitted(me, jsonl(line("a"))))
        assert batch.status == "completed"
        for ask in (
            them.files.retrieve(batch.input_file_id),
            them.files.content(batch.output_file_id),
            them.files.delete(batch.input_file_id),
            them.batches.retrieve(batch.id),
            them.batches.cancel(batch.id),
        ):
            with pytest.raises(openai.NotFoundError):
                await ask
        with pytest.raises(openai.BadRequestError, match="input_file_id"):
            await them.batches.create(
                input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"
            )
        assert (await them.files.list()).data == []
        assert (await them.batches.list()).data == []
        assert len((await me.files.list()).data) == 2
        (record,) = await gateway.records()
        assert record.tenant == "mine"
        assert (record.cost or 0) > 0
        store = gateway.app.services.keyring.opened()
        async with asyncio.timeout(5):
            while not any(key.spent == record.cost for key in store.every()):
                await asyncio.sleep(0.02)


async def test_a_batch_whose_key_is_revoked_stops(first: FakeUpstream, tmp_path: Path) -> None:
    gate = Gate()
    first.answer(Script([gate], status=503), chat("never"))
    secret = made(tmp_path, "short", budget=1.0)
    async with running(configured(tmp_path, first)) as gateway, of(gateway, secret) as client:
        batch_id = await submitted(client, jsonl(line("a")))
        await gate.reached.wait()
        keyring = gateway.app.services.keyring
        await asyncio.to_thread(keyring.opened().revoke, "short")
        await asyncio.to_thread(keyring.refresh)
        gate.opened.set()
        store = gateway.app.runner._store
        async with asyncio.timeout(10):
            while (found := store.batch(batch_id, "short")) is None or found.status != "failed":
                await asyncio.sleep(0.02)
        assert found.errors is not None
        assert found.errors.data[0].code == "invalid_api_key"


@pytest.mark.parametrize(
    ("url", "kind"), [(CHAT, "insufficient_quota"), ("/v1/messages", "billing_error")]
)
async def test_a_key_out_of_money_gets_its_lines_back_unanswered(
    first: FakeUpstream, tmp_path: Path, url: str, kind: str
) -> None:
    secret = made(tmp_path, "poor", budget=0.0)
    async with running(configured(tmp_path, first)) as gateway, of(gateway, secret) as client:
        batch = await ended(client, await submitted(client, jsonl({**line("a"), "url": url}), url))
        (error,) = await lines_of(client, batch.error_file_id)
        assert error["response"]["body"]["error"]["type"] == kind
        assert first.received == []


async def test_lines_wait_while_a_person_uses_the_engine(tiny: Path, tmp_path: Path) -> None:
    settings = Configuration(
        models={"tiny": Model(source="tiny")}, log=Log(directory=str(tmp_path))
    )
    async with running(settings, {"tiny": tiny}) as gateway, of(gateway) as client:
        services = gateway.app.services
        local = services.providers["local"]
        assert isinstance(local, LocalProvider)
        with services.locally:  # as a call that somebody waits for does
            batch_id = await submitted(
                client, jsonl(*(line(f"q{i}", model="tiny") for i in range(3)))
            )
            async with asyncio.timeout(10):
                while services.now.calls.running < 3:
                    await asyncio.sleep(0.01)
            assert local.engine_of("tiny")[0].counters.running == 0
            assert await gateway.records() == []
        batch = await ended(client, batch_id)
        assert batch.request_counts.completed == 3
        assert {record.provider for record in await gateway.records()} == {"local"}


async def test_files_are_listed_read_and_deleted_by_the_official_client(
    gateway: Running, client: openai.AsyncOpenAI
) -> None:
    ids = [
        (await client.files.create(file=(f"{i}.jsonl", b"{}\n"), purpose="batch")).id
        for i in range(3)
    ]
    page = await client.files.list(limit=2, order="asc")
    assert ([file.id for file in page.data], page.has_more) == (ids[:2], True)
    assert [file.id async for file in client.files.list(limit=1, order="asc")] == ids
    assert [file.id for file in (await client.files.list()).data] == ids[::-1]
    file = await client.files.retrieve(ids[0])
    assert (file.filename, file.bytes, file.purpose) == ("0.jsonl", 3, "batch")
    assert (await client.files.content(ids[0])).content == b"{}\n"
    assert (await client.files.delete(ids[0])).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.content(ids[0])


async def test_a_file_over_a_bound_is_refused_and_leaves_nothing(
    first: FakeUpstream, tmp_path: Path
) -> None:
    settings = replace(configured(tmp_path, first), files=Files(max_bytes=100, max_total_bytes=150))
    async with running(settings) as gateway, of(gateway) as client:
        await client.files.create(file=("a", b"x" * 100), purpose="batch")
        for content in (b"x" * 101, b"x" * 60, b"x" * (2 * 1024 * 1024)):
            with pytest.raises(openai.APIStatusError) as refused:
                await client.files.create(file=("b", content), purpose="batch")
            assert refused.value.status_code == 413
        with pytest.raises(openai.BadRequestError, match="purpose"):
            await client.files.create(file=("b", b"x"), purpose="vision")
    assert len([path for path in (tmp_path / "files").iterdir() if path.name[0] != "."]) == 1
    assert list((tmp_path / "files").glob(".upload-*")) == []


async def test_an_expired_file_is_gone(first: FakeUpstream, tmp_path: Path) -> None:
    async with running(configured(tmp_path, first)) as gateway, of(gateway) as client:
        file = await client.files.create(
            file=("a", b"x"),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        now = gateway.app.services.wall()
        gateway.app.services.wall = lambda: now + 3601
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(file.id)
