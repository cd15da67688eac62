"""The contract of a provider: a request in, events out.

An adapter maps every failure of its upstream to one `protocol.errors` leaf at its own border:
refused input stays an `InputError`; connection faults, 5xx, malformed or cut answers become
`UpstreamError`; time-outs `UpstreamTimeout`; 429 becomes `RateLimited` with the upstream's
Retry-After.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol, runtime_checkable

from headrace.protocol.encoding import ClassificationRequest, EmbeddingRequest, RankRequest
from headrace.protocol.errors import InvalidField
from headrace.protocol.generation import AnyRequest, Event, GenerationRequest
from headrace.protocol.media import MediaRequest
from headrace.providers.estimates import estimated_prompt


class Provider(Protocol):
    """An upstream that can generate."""

    name: str

    def generate(self, request: GenerationRequest, model: str) -> AsyncGenerator[Event, None]:
        """Run `request` on the upstream's own model name `model`.

        Yields deltas and last one `Finished`; a stream that ends without it raised. Closing the
        generator (`aclose`) frees the connection or the engine slot within one step.
        """
        ...

    def ready(self, model: str) -> bool:
        """Whether a call to the upstream's `model` made now has a chance; never blocks."""
        ...

    async def start(self) -> None:
        """Open what the provider needs (a client pool, the engine process)."""
        ...

    async def close(self) -> None:
        """Release it; running generations fail."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """A provider that turns texts into vectors."""

    def embed(self, request: EmbeddingRequest, model: str) -> AsyncGenerator[Event, None]:
        """One `Embedded`, then `Finished`; otherwise as `Provider.generate`."""
        ...


@runtime_checkable
class Ranker(Protocol):
    """A provider that ranks documents by a query."""

    def rank(self, request: RankRequest, model: str) -> AsyncGenerator[Event, None]:
        """One `Ranked`, then `Finished`; otherwise as `Provider.generate`."""
        ...


@runtime_checkable
class Classifier(Protocol):
    """A provider that puts texts under labels."""

    def classify(self, request: ClassificationRequest, model: str) -> AsyncGenerator[Event, None]:
        """One `Classified`, then `Finished`; otherwise as `Provider.generate`."""
        ...


@runtime_checkable
class Artist(Protocol):
    """A provider that makes or hears images and sound."""

    def pass_on(self, request: MediaRequest, model: str) -> AsyncGenerator[Event, None]:
        """`MediaPiece`s, then `Finished`; otherwise as `Provider.generate`."""
        ...


@runtime_checkable
class Counter(Protocol):
    """A provider that counts a prompt's tokens."""

    async def count(self, request: GenerationRequest, model: str) -> int:
        """How many tokens the upstream's `model` sees; raises as `Provider.generate` does."""
        ...


@runtime_checkable
class Lister(Protocol):
    """A provider that lists its models, which costs nothing."""

    async def list_models(self) -> None:
        """Ask for the list, whose content is not looked at; raises as `Provider.generate` does."""
        ...


async def count_tokens(provider: Provider, request: GenerationRequest, model: str) -> int:
    """The tokens of a prompt: the provider's own count, or an estimate where it has none."""
    if isinstance(provider, Counter):
        return await provider.count(request, model)
    return estimated_prompt(request)


def answer(provider: Provider, request: AnyRequest, model: str) -> AsyncGenerator[Event, None]:
    """The provider's answer to a request of any kind, on its model name `model`.

    Where the provider has no such endpoint, that raises InvalidField.
    """
    if isinstance(request, GenerationRequest):
        return provider.generate(request, model)
    if isinstance(request, EmbeddingRequest) and isinstance(provider, Embedder):
        return provider.embed(request, model)
    if isinstance(request, RankRequest) and isinstance(provider, Ranker):
        return provider.rank(request, model)
    if isinstance(request, ClassificationRequest) and isinstance(provider, Classifier):
        return provider.classify(request, model)
    if isinstance(request, MediaRequest) and isinstance(provider, Artist):
        return provider.pass_on(request, model)
    return _without(request.endpoint)


async def _without(endpoint: str) -> AsyncGenerator[Event, None]:
    for _ in ():
        yield _
    raise InvalidField("model", f"its provider has no {endpoint} endpoint.")
