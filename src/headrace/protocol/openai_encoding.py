"""Bodies of embeddings, rerank and classify, both ways.

Source: the OpenAI API reference (embeddings); Cohere's and Jina's rerank references, whose answers
are one object here; vLLM's classification API, and Cohere's (version 1).
"""

from __future__ import annotations

from array import array
from base64 import b64encode
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from headrace.protocol.encoding import (
    ClassificationRequest,
    Classified,
    Embedded,
    EmbeddingRequest,
    Encoded,
    EncodingRequest,
    Input,
    Ranked,
    RankRequest,
)
from headrace.protocol.errors import InvalidField
from headrace.protocol.generation import Usage
from headrace.protocol.json import check_bounds
from headrace.protocol.openai import ModelName, Token, convert

MAX_TEXTS = 2048  # as in OpenAI's API

_encode = msgspec.json.Encoder().encode


class EmbeddingBody(Struct, kw_only=True):
    """Texts to turn into vectors."""

    model: ModelName
    input: str | list[Any]
    dimensions: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    encoding_format: Literal["float", "base64"] | None = None


class ClassificationBody(Struct, kw_only=True):
    """Texts to put under labels: `input`, or `inputs` as Cohere's clients say."""

    model: ModelName
    input: str | list[Any] | None = None
    inputs: list[str] | None = None


class RankBody(Struct, kw_only=True):
    """Documents to order by a query."""

    model: ModelName
    query: str
    documents: Annotated[list[str | dict[str, Any]], Meta(min_length=1, max_length=MAX_TEXTS)]
    top_n: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    return_documents: bool | None = None


def embedding_request(fields: dict[str, Any]) -> EmbeddingRequest:
    """The request in an embeddings body. Raises InvalidField."""
    body = convert(fields, EmbeddingBody)
    return EmbeddingRequest(
        model=body.model,
        input=_texts(body.input),
        dimensions=body.dimensions,
        encoding_format=body.encoding_format or "float",
        extra=_extra(fields, EmbeddingBody),
    )


def classification_request(fields: dict[str, Any]) -> ClassificationRequest:
    """The request in a classify body. Raises InvalidField."""
    body = convert(fields, ClassificationBody)
    extra = _extra(fields, ClassificationBody)
    if body.inputs is None:
        if body.input is None:
            raise InvalidField("input", "expected one or several texts.")
        return ClassificationRequest(model=body.model, input=_texts(body.input), extra=extra)
    if body.input is not None:
        raise InvalidField("inputs", "expected either 'input' or 'inputs'.")
    texts = _texts(list[Any](body.inputs))
    return ClassificationRequest(dialect="cohere", model=body.model, input=texts, extra=extra)


def rank_request(fields: dict[str, Any]) -> RankRequest:
    """The request in a rerank body. Raises InvalidField."""
    body = convert(fields, RankBody)
    documents = []
    for place, document in enumerate(body.documents):
        text = document.get("text") if isinstance(document, dict) else document
        if not isinstance(text, str):
            raise InvalidField(f"documents[{place}].text", "expected a string.")
        documents.append(text)
    return RankRequest(
        model=body.model,
        query=body.query,
        documents=tuple(documents),
        top_n=body.top_n,
        return_documents=bool(body.return_documents),
        extra=_extra(fields, RankBody),
    )


def encoding_body(
    id: str, model: str, request: EncodingRequest, encoded: Encoded, usage: Usage
) -> bytes:
    """A whole answer. `id` and `model` name it on the wire."""
    tokens = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
    if isinstance(request, EmbeddingRequest) and isinstance(encoded, Embedded):
        plain = request.encoding_format == "float"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": floats(vector) if plain else b64encode(vector).decode(),
            }
            for index, vector in enumerate(encoded.vectors)
        ]
        return _encode({"id": id, "object": "list", "data": data, "model": model, "usage": tokens})
    if isinstance(request, RankRequest) and isinstance(encoded, Ranked):
        results = _ranking(request, encoded)
        meta = {"api_version": {"version": "1"}, "billed_units": {"search_units": 1}}
        return _encode(
            {"id": id, "model": model, "results": results, "meta": meta, "usage": tokens}
        )
    if isinstance(request, ClassificationRequest) and isinstance(encoded, Classified):
        if request.dialect == "cohere":
            found = _cohere_classes(id, request, encoded)
            meta = {
                "api_version": {"version": "1"},
                "billed_units": {"classifications": len(found)},
            }
            return _encode({"id": id, "model": model, "classifications": found, "meta": meta})
        data = [
            _classes(index, encoded.labels, probabilities)
            for index, probabilities in enumerate(encoded.probabilities)
        ]
        return _encode({"id": id, "object": "list", "model": model, "data": data, "usage": tokens})
    raise ValueError("the answer is not of the request's kind")


def floats(vector: bytes) -> list[float]:
    """The values of a vector, each in the fewest digits that give the same float32."""
    return [float(f"{value:.9g}") for value in array("f", vector)]


def _ranking(request: RankRequest, ranked: Ranked) -> list[dict[str, Any]]:
    """The documents best first; equals in the order they came."""
    order = sorted(range(len(ranked.scores)), key=lambda index: -ranked.scores[index])
    results: list[dict[str, Any]] = []
    for index in order[: request.top_n]:
        result: dict[str, Any] = {"index": index, "relevance_score": ranked.scores[index]}
        if request.return_documents:
            result["document"] = {"text": request.documents[index]}
        results.append(result)
    return results


def _classes(
    index: int, labels: tuple[str, ...], probabilities: tuple[float, ...]
) -> dict[str, Any]:
    best = max(range(len(labels)), key=lambda place: probabilities[place])
    return {
        "index": index,
        "label": labels[best],
        "probs": probabilities,
        "num_classes": len(labels),
        "scores": dict(zip(labels, probabilities, strict=True)),
    }


def _cohere_classes(
    id: str, request: ClassificationRequest, encoded: Classified
) -> list[dict[str, Any]]:
    """Each text's best label, and what all labels are worth."""
    found = []
    for index, (text, values) in enumerate(zip(request.input, encoded.probabilities, strict=True)):
        told = _classes(index, encoded.labels, values)
        best, confidence = told["label"], max(values)
        found.append(
            {
                "id": f"{id}-{index}",
                "input": text,
                "prediction": best,
                "predictions": [best],
                "confidence": confidence,
                "confidences": [confidence],
                "labels": {name: {"confidence": one} for name, one in told["scores"].items()},
                "classification_type": "single-label",
            }
        )
    return found


def _texts(given: str | list[Any]) -> tuple[Input, ...]:
    """One text, one list of token ids, or a list of either. Raises InvalidField."""
    several = given if isinstance(given, list) and not _is_tokens(given) else [given]
    if not 1 <= len(several) <= MAX_TEXTS:
        raise InvalidField("input", f"expected 1 to {MAX_TEXTS} texts, got {len(several)}.")
    texts: list[Input] = []
    for place, text in enumerate(several):
        if isinstance(text, str):
            texts.append(text)
            continue
        try:
            texts.append(msgspec.convert(text, Annotated[tuple[Token, ...], Meta(min_length=1)]))
        except msgspec.ValidationError:
            expected = "expected a string or a list of token ids."
            raise InvalidField(f"input[{place}]", expected) from None
    return tuple(texts)


def _is_tokens(given: list[Any]) -> bool:
    return bool(given) and all(isinstance(one, int) for one in given)


def _extra(fields: dict[str, Any], body: type[Struct]) -> dict[str, Any]:
    extra = {}
    for name, value in fields.items():
        if name not in body.__struct_fields__ and value is not None:
            check_bounds(name, value)
            extra[name] = value
    return extra
