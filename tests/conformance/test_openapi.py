"""The documents of the API are true, and whatever they allow is answered without a fault."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from headrace.config.schema import Configuration, Log, Model, UpstreamProvider
from headrace.gateway.app import ANSWERING
from headrace.gateway.openapi.document import document
from headrace.gateway.openapi.operations import ADMIN, DATA
from tests.fakes.gateway import Running, running
from tests.fakes.threaded import threaded
from tests.fakes.upstream import JSON, FakeUpstream, Script, chat, completions

EXAMPLES = 6


def said(value: object) -> Script:
    return Script([json.dumps(value).encode()], headers=JSON)


CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
BOUNDED = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


# An answer of our own engine, whichever of its endpoints is asked.
SHORT = {"max_tokens": 2, "max_completion_tokens": 2, "max_output_tokens": 2, "n": 1, "best_of": 1}
UPSTREAM = {
    "completions": completions("Hello"),
    "embeddings": said({"data": [{"index": 0, "embedding": [0.5, -0.5]}]}),
    "moderations": said({"id": "modr-1", "model": "m", "results": []}),
    "images/generations": said({"created": 1, "data": [{"url": "http://127.0.0.1/a.png"}]}),
    "images/edits": said({"created": 1, "data": []}),
    "audio/speech": Script([b"abc"], headers={"content-type": "audio/mpeg"}),
    "audio/transcriptions": said({"text": "Hello."}),
    "audio/translations": Script([b"Hello."], headers={"content-type": "text/plain"}),
}


@contextlib.asynccontextmanager
async def platform(directory: Path, tiny: Path) -> AsyncIterator[Running]:
    async with FakeUpstream() as upstream:
        upstream.answer(chat("Hello"))
        for path, answer in UPSTREAM.items():
            upstream.answer_at(f"/v1/{path}", answer)
        configuration = Configuration(
            providers={"up": UpstreamProvider(base_url=upstream.base_url)},
            models={
                "tiny": Model(source="tiny"),
                "far": Model(source="far", provider="up"),
            },
            log=Log(directory=str(directory)),
        )
        async with running(configuration, {"tiny": tiny}) as gateway:
            yield gateway


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("openapi")
    with threaded(lambda: platform(directory, tiny)) as gateway:
        yield gateway.url


@pytest.fixture(scope="module")
def administered(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[str]:
    """Another one: once a key is made, the data API asks for it."""
    directory = tmp_path_factory.mktemp("administered")
    with threaded(lambda: platform(directory, tiny)) as gateway:
        yield gateway.url


data = schemathesis.openapi.from_dict(document("data", DATA))
admin = schemathesis.openapi.from_dict(document("admin", ADMIN))


@data.parametrize()
@BOUNDED
def test_any_call_that_the_document_allows_is_answered_as_it_says(
    case: schemathesis.Case[Any], url: str
) -> None:
    if isinstance(case.body, dict) and "model" in case.body:
        local = len(json.dumps(case.body, default=str)) % 2
        case.body |= {"model": "tiny", **SHORT} if local else {"model": "far"}
    case.call_and_validate(base_url=url, checks=CHECKS)


@admin.parametrize()
@BOUNDED
def test_any_admin_call_that_the_document_allows_is_answered_as_it_says(
    case: schemathesis.Case[Any], administered: str
) -> None:
    case.call_and_validate(base_url=administered, checks=CHECKS)


def test_the_document_tells_every_endpoint_of_a_call() -> None:
    assert ANSWERING.keys() <= {one.path for one in DATA if one.method == "post"}


@pytest.mark.parametrize("path", ["/openapi.json", "/admin/openapi.json"])
def test_a_document_is_where_it_says(url: str, path: str) -> None:
    with urllib.request.urlopen(url + path) as answer:
        told = json.load(answer)
    assert told["openapi"] == "3.1.0"
    assert path in told["paths"]
