"""The contract of a provider: a request in, events out.

An adapter maps every failure of its upstream to one `protocol.errors` leaf at its own border:
refused input stays an `InputError`; connection faults, 5xx, malformed or cut answers become
`UpstreamError`; time-outs `UpstreamTimeout`; 429 becomes `RateLimited` with the upstream's
Retry-After.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from headrace.protocol.generation import Event, GenerationRequest


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
