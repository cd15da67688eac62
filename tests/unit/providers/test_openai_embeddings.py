"""What is asked of an upstream that embeds, and what becomes of its answer."""

from __future__ import annotations

import json
from array import array
from base64 import b64encode
from typing import Any

import pytest

from headrace.protocol.encoding import Embedded, EmbeddingRequest
from headrace.protocol.errors import RefusedByUpstream, UpstreamError
from headrace.protocol.generation import Event, Finished, Usage
from tests.fakes.upstream import JSON, FakeUpstream, Script, failing
from tests.unit.providers.calling import KEY, provider

REQUEST = EmbeddingRequest(model="asked", input=("a", (1, 2)), dimensions=2, extra={"user": "u"})
VECTORS = Embedded((array("f", [0.5, 1.0]).tobytes(), array("f", [2.0, 3.0]).tobytes()))


def said(*embeddings: tuple[int, Any], **more: Any) -> Script:
    data = [{"index": index, "embedding": vector} for index, vector in embeddings]
    return Script([json.dumps({"data": data, **more}).encode()], headers=JSON)


async def embed(upstream: FakeUpstream, script: Script) -> list[Event]:
    upstream.answer(script)
    async with provider(upstream) as made:
        return [event async for event in made.embed(REQUEST, "theirs")]


async def test_the_request_goes_in_openais_words(upstream: FakeUpstream) -> None:
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    found = await embed(upstream, said((1, [2, 3]), (0, [0.5, 1]), usage=usage))
    assert found == [VECTORS, Finished("stop", Usage(3, 0))]
    assert upstream.received[0].path == "/v1/embeddings"
    assert upstream.received[0].body == {
        "model": "theirs",
        "input": ["a", [1, 2]],
        "dimensions": 2,
        "encoding_format": "float",
        "user": "u",
    }


async def test_base64_is_read_too_and_missing_usage_estimated(upstream: FakeUpstream) -> None:
    sent = [(place, b64encode(one).decode()) for place, one in enumerate(VECTORS.vectors)]
    found = await embed(upstream, said(*sent))
    assert found == [VECTORS, Finished("stop", Usage(3, 0, provenance="estimated"))]


@pytest.mark.parametrize(
    "script",
    [
        said((0, [1])),
        said((0, [1]), (2, [1])),
        said((0, [1]), (1, [1, 2])),
        said((0, [1]), (1, ["a"])),
        said((0, "AA=="), (1, "AA==")),
        said((0, "%"), (1, "%")),
        said((0, [1e300]), (1, [1])),
        Script([b"{"], headers=JSON),
        Script([b'{"data":' + b"[" * 5000], headers=JSON),
    ],
    ids=range(9),
)
async def test_anything_else_is_the_upstreams_fault(upstream: FakeUpstream, script: Script) -> None:
    with pytest.raises(UpstreamError):
        await embed(upstream, script)


async def test_a_refusal_keeps_its_field_and_hides_the_key(upstream: FakeUpstream) -> None:
    with pytest.raises(RefusedByUpstream) as caught:
        await embed(upstream, failing(400, f"bad {KEY}", param="input"))
    assert caught.value.param == "input"
    assert KEY not in caught.value.message
