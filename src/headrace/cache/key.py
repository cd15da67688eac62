"""The key of a response: a digest of everything that shapes the answer, and of who may see it.

The tenant comes from the server's own knowledge of the caller, never from the body, so that no
body can reach another tenant's answers.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from headrace.protocol.generation import GenerationRequest

# Fields of a body that label a call and cannot change its answer. Who the end user is
# (`user`, `safety_identifier`) stays in the key: an upstream may answer by it.
_LABELS = frozenset({"metadata", "prompt_cache_key"})

_encoder = msgspec.json.Encoder(order="deterministic")


def cache_key(request: GenerationRequest, identity: str, tenant: str) -> bytes:
    """The 32-byte BLAKE2b key of `request`, answered by the model `identity`, for `tenant`.

    How the answer is delivered (`stream`, `include_usage`) is not part of it. Requests that
    differ only in the order of an object's keys are equal.
    """
    # One JSON array: its syntax keeps the parts apart whatever text is in them.
    parts = (
        tenant,
        identity,
        request.endpoint,
        request.model,
        request.messages,
        request.prompt,
        request.max_tokens,
        _number(request.temperature),
        _number(request.top_p),
        request.top_k,
        request.seed,
        request.stop,
        {name: value for name, value in request.extra.items() if name not in _LABELS},
    )
    return blake2b(_encoder.encode(parts), digest_size=32).digest()


def _number(value: float | None) -> float | None:
    """0 and 0.0 are one temperature."""
    return None if value is None else float(value)
