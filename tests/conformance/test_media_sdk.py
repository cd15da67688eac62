"""Images and sound through OpenAI's official SDK, passed through to who has them."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from email import message_from_bytes
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from headrace.config.schema import Configuration, Log, Match, Model, Price, Route, UpstreamProvider
from headrace.gateway.key_admin import NewKey
from tests.fakes.gateway import Running, running
from tests.fakes.upstream import (
    JSON,
    Cut,
    FakeUpstream,
    Gate,
    Received,
    Script,
    Stall,
    failing,
    sse,
)

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8
IMAGES: dict[str, Any] = {"created": 1, "data": [{"b64_json": b64encode(PNG).decode()}]}
PRICE = Price(image=0.04, minute=0.006, characters=15.0)
HEARD = {"text": "Hello.", "usage": {"type": "duration", "seconds": 30}}


def said(value: object) -> Script:
    return Script([json.dumps(value).encode()], headers=JSON)


def sound(*pieces: Any) -> Script:
    return Script(pieces, headers={"content-type": "audio/mpeg"})


def form(request: Received) -> dict[str, bytes]:
    """The parts of a form, by name."""
    head = f"content-type: {request.headers['content-type']}\r\n\r\n".encode()
    parts: Any = message_from_bytes(head + request.raw).get_payload()
    return {
        part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
        for part in parts
    }


@pytest.fixture
async def gateway(
    first: FakeUpstream, second: FakeUpstream, tmp_path: Path
) -> AsyncIterator[Running]:
    providers = {
        "o": UpstreamProvider(base_url=first.base_url, key="env:TEST_KEY"),
        "z": UpstreamProvider(base_url=second.base_url, dialect="azure", api_version="1"),
        "a": UpstreamProvider(base_url=first.base_url, dialect="anthropic"),
    }
    models = {
        "claude": Model(source="real-claude", provider="a"),
        "media": Model(source="real-media", provider="o", price=PRICE),
        "spare": Model(source="real-spare", provider="z"),
    }
    route = Route(name="r", attempts=("claude", "media", "spare"), when=Match(model="any"))
    configuration = Configuration(
        providers=providers, models=models, routes=(route,), log=Log(directory=str(tmp_path))
    )
    async with running(configuration) as gateway:
        yield gateway


@pytest.fixture
async def client(gateway: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


async def test_an_image_is_passed_through_and_priced_but_not_recorded(
    client: openai.AsyncOpenAI, first: FakeUpstream, gateway: Running
) -> None:
    first.answer(said(IMAGES))
    answer = await client.images.generate(model="any", prompt="A boat", size="1024x1024")
    assert answer.data is not None
    assert answer.data[0].b64_json == IMAGES["data"][0]["b64_json"]
    sent = first.received[0]
    assert sent.path == "/v1/images/generations"
    assert sent.body == {"prompt": "A boat", "size": "1024x1024", "model": "real-media"}
    (record,) = await gateway.records()
    assert record.cost == pytest.approx(0.04)
    assert record.input is not None
    assert record.input["prompt"] == "A boat"
    whole = json.dumps(IMAGES)
    assert record.output == {"type": "application/json", "bytes": len(whole), "images": 1}


async def test_a_model_whose_provider_has_no_images_is_never_tried(
    client: openai.AsyncOpenAI, first: FakeUpstream, gateway: Running
) -> None:
    first.answer(said(IMAGES))
    await client.images.generate(model="any", prompt="A boat")
    assert len(first.received) == 1
    (record,) = await gateway.records()
    assert record.skipped == (
        {"model": "claude", "provider": "a", "reason": "it has no images endpoint"},
    )
    with pytest.raises(openai.BadRequestError, match="no images endpoint"):
        await client.images.generate(model="claude", prompt="A boat")


async def test_a_moderation_is_passed_through_to_who_has_them(
    client: openai.AsyncOpenAI, first: FakeUpstream, gateway: Running
) -> None:
    result = {"flagged": True, "categories": {}, "category_scores": {"violence": 0.9}}
    first.answer(said({"id": "modr-7", "model": "real-media", "results": [result]}))
    parts: Any = [{"type": "text", "text": "Boo"}]
    answer = await client.moderations.create(model="any", input=parts)
    assert (answer.id, answer.results[0].flagged) == ("modr-7", True)
    sent = first.received[0]
    assert (sent.path, sent.body) == (
        "/v1/moderations",
        {"input": parts, "model": "real-media"},
    )
    (record,) = await gateway.records()
    assert (record.endpoint, record.status) == ("moderations", "ok")
    with pytest.raises(openai.BadRequestError) as refused:
        await client.moderations.create(model="any", input=[7])  # type: ignore[arg-type]
    assert "input" in refused.value.message


async def test_images_to_change_arrive_byte_for_byte_and_again_at_the_fallback(
    client: openai.AsyncOpenAI, first: FakeUpstream, second: FakeUpstream, gateway: Running
) -> None:
    first.answer(failing(503))
    second.answer(said(IMAGES))
    await client.images.edit(
        model="any",
        prompt='"A"\r\nboat',
        image=[("a.png", PNG), ('b"\r\n.png', PNG[::-1])],
        mask=PNG,
    )
    for upstream, model in ((first, "real-media"), (second, "real-spare")):
        parts = form(upstream.received[0])
        assert parts["model"] == model.encode()
        assert parts["prompt"] == b'"A"\r\nboat'
        assert (parts["image[]"], parts["mask"]) == (PNG[::-1], PNG)
    assert second.received[0].path == "/v1/deployments/real-spare/images/edits?api-version=1"
    (record,) = await gateway.records()
    assert [attempt.provider for attempt in record.attempts] == ["o", "z"]
    assert record.cost is None  # the spare has no price
    assert record.input is not None
    assert [file["bytes"] for file in record.input["files"]] == [len(PNG)] * 3


async def test_a_transcription_is_priced_by_the_minute(
    client: openai.AsyncOpenAI, first: FakeUpstream, gateway: Running
) -> None:
    first.answer(said(HEARD))
    answer = await client.audio.transcriptions.create(model="media", file=("a.wav", PNG))
    assert answer.text == "Hello."
    assert form(first.received[0])["file"] == PNG
    (record,) = await gateway.records()
    assert record.cost == pytest.approx(0.003)
    assert record.output is not None
    assert record.output["text"] == "Hello."


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the SDK's translations
@pytest.mark.parametrize("endpoint", ["transcriptions", "translations"])
async def test_a_transcript_may_be_plain_text_whose_price_is_not_known(
    client: openai.AsyncOpenAI, first: FakeUpstream, gateway: Running, endpoint: str
) -> None:
    first.answer(Script([b"Hel", b"lo."], headers={"content-type": "text/plain; charset=utf-8"}))
    sounds: Any = getattr(client.audio, endpoint)
    assert await sounds.create(model="media", file=("a", PNG), response_format="text") == "Hello."
    assert first.received[0].path == f"/v1/audio/{endpoint}"
    (record,) = await gateway.records()
    assert (record.cost, record.usage_provenance) == (None, "unknown")


async def test_speech_comes_as_it_is_spoken(
    client: openai.AsyncOpenAI, first: FakeUpstream, gateway: Running
) -> None:
    gate = Gate()
    first.answer(sound(b"abc", gate, b"def"))
    speaking = client.audio.speech.with_streaming_response.create(
        model="media", voice="alloy", input="x" * 1000
    )
    async with speaking as answer:
        assert answer.headers["content-type"] == "audio/mpeg"
        assert answer.headers["x-headrace-model"] == "media"
        pieces = answer.iter_bytes()
        assert await anext(pieces) == b"abc"
        gate.opened.set()
        assert b"".join([piece async for piece in pieces]) == b"def"
    (record,) = await gateway.records()
    assert record.cost == pytest.approx(0.015)
    assert record.output == {"type": "audio/mpeg", "bytes": 6}


async def test_speech_that_breaks_is_seen_to_be_cut(
    first: FakeUpstream, gateway: Running, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    first.answer(sound(b"abc", gate, Cut()))
    body = {"model": "media", "voice": "alloy", "input": "Hi"}
    async with gateway.post(body, "/v1/audio/speech") as answer:
        assert await answer.content.readexactly(3) == b"abc"
        gate.opened.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    await gateway.idle()
    (record,) = await gateway.records()
    assert (record.status, record.error_code) == ("error", "upstream_error")
    assert record.cost == pytest.approx(2 * 15 / 1e6)  # it was spoken, as far as anybody knows
    assert not caplog.records


async def test_who_hangs_up_is_spoken_to_no_more(first: FakeUpstream, gateway: Running) -> None:
    first.answer(sound(b"abc", Stall()))
    body = {"model": "media", "voice": "alloy", "input": "Hi"}
    async with gateway.post(body, "/v1/audio/speech") as answer:
        await answer.content.readexactly(3)
        answer.close()
    await asyncio.wait_for(first.received[0].left.wait(), 5)
    await gateway.idle()
    (record,) = await gateway.records()
    assert record.status == "cancelled"


async def test_images_may_come_in_parts(
    client: openai.AsyncOpenAI, first: FakeUpstream, gateway: Running
) -> None:
    usage = {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13}
    partial = {"type": "image_generation.partial_image", "b64_json": "AAAA"}
    done = {"type": "image_generation.completed", "b64_json": "AAAA", "usage": usage}
    first.answer(Script([sse(partial), sse(done)]))
    stream = await client.images.generate(model="media", prompt="A boat", stream=True)
    kinds = [event.type async for event in stream]
    assert kinds == ["image_generation.partial_image", "image_generation.completed"]
    (record,) = await gateway.records()
    assert (record.prompt_tokens, record.completion_tokens) == (9, 4)


async def test_a_large_upload_goes_through_the_disk_and_leaves_nothing(
    client: openai.AsyncOpenAI, first: FakeUpstream, tmp_path: Path
) -> None:
    first.answer(said(HEARD))
    recording = bytes(25 * 1024 * 1024)
    await client.audio.transcriptions.create(model="media", file=("a.wav", recording))
    assert len(form(first.received[0])["file"]) == len(recording)
    assert not list((tmp_path / "files").glob(".upload-*"))


async def test_a_refusal_before_the_end_of_an_upload_is_told(
    client: openai.AsyncOpenAI, first: FakeUpstream
) -> None:
    first.answer(Script(head=[b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n", Stall()]))
    with pytest.raises(openai.APIStatusError) as refused:
        await client.audio.transcriptions.create(model="media", file=("a.wav", bytes(4 << 20)))
    assert refused.value.status_code == 413


async def test_a_budget_that_does_not_cover_an_image_buys_none(
    client: openai.AsyncOpenAI, first: FakeUpstream, gateway: Running
) -> None:
    keyring = gateway.app.services.keyring
    _, secret = keyring.opened().create(NewKey(name="poor", budget=0.05).key())
    keyring.refresh()
    poor = client.with_options(api_key=secret)
    first.answer(said(IMAGES))
    await poor.images.generate(model="media", prompt="A boat")
    with pytest.raises(openai.RateLimitError, match="budget"):
        await poor.images.generate(model="media", prompt="A boat", n=2)
    assert len(first.received) == 1


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("images/generations", {"model": "media"}, "prompt"),
        ("images/generations", {"model": "media", "prompt": "x", "n": 11}, "n"),
        ("audio/speech", {"model": "media", "input": "x"}, "voice"),
        ("images/edits", {"model": "media"}, None),
    ],
)
async def test_a_bad_body_is_refused_by_its_field(
    gateway: Running, path: str, body: dict[str, Any], field: str | None
) -> None:
    async with gateway.post(body, f"/v1/{path}") as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": "x"}, "model"),
        ({"model": "media"}, "file"),
        ({"model": "media", "stream": "maybe", "file": b"abc"}, "stream"),
        ({"model": "media", "other": b"abc"}, "other"),
    ],
)
async def test_a_bad_form_is_refused_by_its_field(
    gateway: Running, first: FakeUpstream, fields: dict[str, Any], field: str
) -> None:
    data = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        data.add_field(name, value, filename="f" if isinstance(value, bytes) else None)
    async with gateway.http.post(f"{gateway.url}/v1/audio/transcriptions", data=data) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == field
    assert not first.received


async def test_a_web_page_of_another_site_sends_no_form(
    client: openai.AsyncOpenAI, first: FakeUpstream
) -> None:
    with pytest.raises(openai.PermissionDeniedError):
        await client.audio.transcriptions.create(
            model="media", file=("a", PNG), extra_headers={"sec-fetch-site": "cross-site"}
        )
    assert not first.received
