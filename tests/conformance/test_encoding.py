"""Embeddings, ranks and classes of real encoders, by clients of OpenAI, Mistral and Cohere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cohere
import numpy as np
import openai
import pytest
import pytest_asyncio
from mistralai.client import Mistral

from headrace.config.schema import Configuration, Log, Model
from headrace.registry.pull import pull
from headrace.runtime.embedding import Encoder
from tests.conformance.models.test_encoders import build
from tests.fakes.gateway import Running, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = ["a river runs through the valley", "the stream flows to the sea", "interest rates rose"]
EMBEDDINGS, RERANK, CLASSIFY = "/v1/embeddings", "/v1/rerank", "/v1/classify"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    classifier = tmp_path_factory.mktemp("classifier")
    crossed = tmp_path_factory.mktemp("crossed")
    build(classifier, "bert", "ForSequenceClassification", num_labels=3)
    build(crossed, "bert", "ForSequenceClassification", num_labels=1)
    paths = {
        "minilm-l6": await asyncio.to_thread(pull, "minilm-l6"),
        "classifier": classifier,
        "crossed": crossed,
        "tiny": tiny,
    }
    configuration = Configuration(
        models={name: Model(source=name) for name in paths},
        log=Log(directory=str(tmp_path_factory.mktemp("log"))),
    )
    async with running(configuration, paths) as gateway:
        yield gateway


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway: Running) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


@pytest.fixture(scope="module")
def expected() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    with Encoder.load(pull("minilm-l6")) as encoder:
        return encoder.embed(TEXTS).vectors


async def test_embeddings_are_the_encoders_own(
    client: openai.AsyncOpenAI, expected: np.ndarray[tuple[int, int], np.dtype[np.float32]]
) -> None:
    for form in ("float", "base64", None):
        answer = await client.embeddings.create(
            model="minilm-l6",
            input=TEXTS,
            encoding_format=form or openai.omit,
            extra_headers={"x-headrace-cache": "off"},
        )
        assert [one.index for one in answer.data] == [0, 1, 2]
        if form == "base64":
            assert isinstance(answer.data[0].embedding, str)
        else:
            found = np.array([one.embedding for one in answer.data], np.float32)
            np.testing.assert_allclose(found, expected, atol=1e-5)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == 8 + 8 + 5


async def test_mistrals_client_reads_the_same_embeddings(
    gateway: Running, expected: np.ndarray[tuple[int, int], np.dtype[np.float32]]
) -> None:
    async with Mistral(api_key="none", server_url=gateway.url) as client:
        answer = await client.embeddings.create_async(model="minilm-l6", inputs=TEXTS)
    found = np.array([one.embedding for one in answer.data], np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert answer.usage.prompt_tokens == 8 + 8 + 5


async def test_fewer_dimensions_have_length_1(client: openai.AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model="minilm-l6", input="a river", dimensions=64)
    (one,) = answer.data
    assert len(one.embedding) == 64
    assert abs(np.linalg.norm(one.embedding) - 1) < 1e-5


async def test_token_ids_are_the_same_text(client: openai.AsyncOpenAI) -> None:
    ids = [101, 1037, 2314, 102]  # [CLS] a river [SEP]
    by_ids = await client.embeddings.create(model="minilm-l6", input=[ids])
    alone = await client.embeddings.create(model="minilm-l6", input=ids)
    by_text = await client.embeddings.create(model="minilm-l6", input="a river")
    assert by_ids.data[0].embedding == alone.data[0].embedding == by_text.data[0].embedding


async def test_the_same_texts_are_a_hit_in_any_format(
    client: openai.AsyncOpenAI, gateway: Running
) -> None:
    outcomes = []
    for form in ("float", "base64"):
        body = {"model": "minilm-l6", "input": "only here", "encoding_format": form}
        async with gateway.post(body, EMBEDDINGS) as response:
            outcomes.append(response.headers["x-headrace-cache"])
    assert outcomes == ["miss", "hit"]
    records = [one for one in await gateway.records() if one.cache == "hit"]
    assert records[-1].endpoint == "embeddings"
    assert records[-1].output == {"vectors": 1}
    assert records[-1].prompt_tokens == 4


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "minilm-l6", "input": []}, "input"),
        ({"model": "minilm-l6", "input": ["a", 5]}, "input[1]"),
        ({"model": "minilm-l6", "input": [[40000]]}, "input"),
        ({"model": "minilm-l6", "input": [[]]}, "input[0]"),
        ({"model": "minilm-l6", "input": "a", "dimensions": 385}, "dimensions"),
        ({"model": "minilm-l6", "input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"model": "minilm-l6", "input": "a", "colour": "red"}, "colour"),
        ({"model": "minilm-l6", "input": "word " * 1000}, "input"),
        ({"model": "tiny", "input": "a"}, "model"),
        ({"model": "classifier", "input": "w1"}, "model"),
    ],
)
async def test_what_cannot_be_embedded_is_refused_by_field(
    gateway: Running, body: dict[str, object], param: str
) -> None:
    async with gateway.post(body, EMBEDDINGS) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == param


async def test_an_encoder_does_not_generate(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="minilm-l6", prompt="Hi")
    assert caught.value.param == "model"


async def test_documents_are_ranked_by_what_they_mean(gateway: Running) -> None:
    async with cohere.AsyncClient(api_key="none", base_url=gateway.url) as client:
        answer = await client.rerank(
            model="minilm-l6",
            query="where does the water go?",
            documents=[TEXTS[2], TEXTS[1], {"text": TEXTS[0]}],
            top_n=2,
            return_documents=True,
        )
    assert [one.index for one in answer.results] in ([1, 2], [2, 1])
    assert answer.results[0].relevance_score > answer.results[1].relevance_score
    told = {one.index: one.document.text for one in answer.results if one.document is not None}
    assert told == {1: TEXTS[1], 2: TEXTS[0]}


async def test_a_cross_encoder_scores_each_pair(gateway: Running, tmp_path: Path) -> None:
    documents = ["w1 w2", "w7", "w3 w4 w5"]
    body = {"model": "crossed", "query": "w9", "documents": documents}
    async with gateway.post(body, RERANK) as response:
        answer = await response.json()
    path = gateway.app.services.providers["local"].engines["crossed"].path  # type: ignore[attr-defined]
    with Encoder.load(path) as encoder:
        scores = encoder.rank("w9", documents).scores
    found = {one["index"]: one["relevance_score"] for one in answer["results"]}
    np.testing.assert_allclose([found[0], found[1], found[2]], scores, atol=1e-5)
    assert "document" not in answer["results"][0]


async def test_texts_are_put_under_the_models_labels(
    client: openai.AsyncOpenAI, gateway: Running
) -> None:
    body = {"model": "classifier", "input": ["w1 w2", "w7"]}
    async with gateway.post(body, CLASSIFY) as response:
        answer = await response.json()
    told = await client.post("/classify", body=body, cast_to=dict[str, Any])
    assert told["data"] == answer["data"]
    assert [one["index"] for one in answer["data"]] == [0, 1]
    for one in answer["data"]:
        assert abs(sum(one["scores"].values()) - 1) < 1e-5
        assert one["label"] == max(one["scores"], key=lambda label: one["scores"][label])
        assert one["num_classes"] == len(one["probs"]) == 3


async def test_coheres_client_reads_the_same_labels(
    client: openai.AsyncOpenAI, gateway: Running
) -> None:
    texts = ["w1 w2", "w7"]
    body = {"model": "classifier", "input": texts}
    told = (await client.post("/classify", body=body, cast_to=dict[str, Any]))["data"]
    async with cohere.AsyncClient(api_key="none", base_url=gateway.url) as other:
        answer = await other.classify(model="classifier", inputs=texts)
    assert [one.input for one in answer.classifications] == texts
    for one, same in zip(answer.classifications, told, strict=True):
        assert one.prediction == same["label"]
        assert one.confidence == same["scores"][same["label"]]
        scores = {label: value.confidence for label, value in one.labels.items()}
        assert scores == same["scores"]


async def test_many_callers_at_once_each_get_their_own(
    client: openai.AsyncOpenAI, gateway: Running
) -> None:
    async def embed(text: str) -> list[float]:
        answer = await client.embeddings.create(
            model="minilm-l6", input=text, extra_headers={"x-headrace-cache": "off"}
        )
        return answer.data[0].embedding

    texts = [f"number {index}" for index in range(40)]
    engine = gateway.app.services.providers["local"].engines["minilm-l6"]  # type: ignore[attr-defined]
    before = engine.counters.steps
    found = await asyncio.gather(*map(embed, texts))
    assert engine.counters.steps - before < 40  # they shared steps
    with Encoder.load(engine.path) as encoder:
        np.testing.assert_allclose(found, encoder.embed(texts).vectors, atol=1e-5)
