"""The dialect-neutral form of what reads whole texts: embeddings, ranks and classes.

Their answers are events as those of a generation are: one that holds everything, then `Finished`.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

Input = str | tuple[int, ...]  # text or token ids


class EmbeddingRequest(Struct, frozen=True, kw_only=True):
    """Texts to turn into vectors, of `dimensions` values where that is given."""

    endpoint: Literal["embeddings"] = "embeddings"
    model: str
    input: tuple[Input, ...]
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] = "float"
    tenant: str = ""
    extra: dict[str, Any] = {}

    stream = False
    deterministic = True


class RankRequest(Struct, frozen=True, kw_only=True):
    """Documents to order by how well they answer the query; the answer holds the `top_n` best."""

    endpoint: Literal["rerank"] = "rerank"
    model: str
    query: str
    documents: tuple[str, ...]
    top_n: int | None = None
    return_documents: bool = False
    tenant: str = ""
    extra: dict[str, Any] = {}

    stream = False
    deterministic = True


class ClassificationRequest(Struct, frozen=True, kw_only=True):
    """Texts to put under a model's labels; `dialect` is whose words the caller used."""

    endpoint: Literal["classify"] = "classify"
    dialect: Literal["vllm", "cohere"] = "vllm"
    model: str
    input: tuple[Input, ...]
    tenant: str = ""
    extra: dict[str, Any] = {}

    stream = False
    deterministic = True


EncodingRequest = EmbeddingRequest | RankRequest | ClassificationRequest


class Embedded(Struct, frozen=True, tag="embedded"):
    """One vector for each text, as little-endian float32."""

    vectors: tuple[bytes, ...]


class Ranked(Struct, frozen=True, tag="ranked"):
    """One score for each document, in the order they came; more is better."""

    scores: tuple[float, ...]


class Classified(Struct, frozen=True, tag="classified"):
    """The labels, and for each text the probability of each."""

    labels: tuple[str, ...]
    probabilities: tuple[tuple[float, ...], ...]


Encoded = Embedded | Ranked | Classified
