"""An upstream's error answer to one leaf of `protocol.errors`.

Source: the OpenAI API reference, error codes; RFC 9110 section 10.2.3 (Retry-After).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from headrace.protocol.errors import (
    HeadraceError,
    Overloaded,
    RateLimited,
    RefusedByUpstream,
    UpstreamError,
)

MAX_MESSAGE = 500  # characters of an upstream's message that are passed on
MAX_RETRY_AFTER = 3600.0  # seconds

OVERLOADED = 529  # Anthropic's status for it
_CALLERS_FAULT = frozenset({400, 404, 413, 422})
_OUR_KEYS_FAULT = frozenset({401, 403})


class Refusal(msgspec.Struct, frozen=True):
    """What an upstream said of its error."""

    message: str = ""
    param: str | None = None
    code: str | None = None
    status: int | None = None  # where the body names one, as an error inside a stream may


def read_refusal(body: bytes) -> Refusal:
    """What an error body says; nothing where it is not OpenAI's shape or one near it."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Refusal()
    if not isinstance(value, dict):
        return Refusal()
    return refusal_of(value.get("error", value.get("detail", value)))


def refusal_of(error: Any) -> Refusal:
    """The parts of an error value: an object with a message, or only a text."""
    if isinstance(error, str):
        return Refusal(message=error[:MAX_MESSAGE])
    if not isinstance(error, dict):
        return Refusal()
    code = error.get("code")
    status = code if isinstance(code, int) and not isinstance(code, bool) else None
    return Refusal(
        message=_text(error.get("message")) or "",
        param=_text(error.get("param")),
        code=_text(code),
        status=status,
    )


def error_for(
    provider: str,
    status: int | None,
    refusal: Refusal,
    retry_after: float | None = None,
) -> HeadraceError:
    """The error for an answer with HTTP `status` (None: an error inside a stream).

    What is wrong with our own key is not the caller's fault, and the upstream's words about it
    may quote the key: they are not passed on.
    """
    message = refusal.message
    if status in _CALLERS_FAULT:
        return RefusedByUpstream(
            message or f"Provider '{provider}' refused the request ({status}).",
            status=status,
            param=refusal.param,
            code=refusal.code,
        )
    if status == 429:
        return RateLimited(
            _said(f"Provider '{provider}' is over its rate limit", message),
            retry_after=retry_after,
        )
    if status == OVERLOADED:
        return Overloaded(
            _said(f"Provider '{provider}' is overloaded", message), retry_after=retry_after
        )
    if status in _OUR_KEYS_FAULT:
        said = f"Provider '{provider}' did not accept the configured key ({status})."
    elif status is None:
        said = _said(f"Provider '{provider}' broke its answer off with an error", message)
    elif 300 <= status < 400:
        said = f"Provider '{provider}' answered with a redirect ({status}), which is not followed."
    else:
        said = _said(f"Provider '{provider}' answered with status {status}", message)
    return UpstreamError(said, upstream_status=status, retry_after=retry_after)


def retry_after(headers: Mapping[str, str], now: Callable[[], float]) -> float | None:
    """Seconds that the Retry-After header asks to wait: 0 to `MAX_RETRY_AFTER`, None if absent.

    The header is a number of seconds or an HTTP date; `now` gives Unix time.
    """
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return None
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        seconds = date.timestamp() - now()
    if not math.isfinite(seconds):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _said(what: str, message: str) -> str:
    return f"{what}: {message}" if message else f"{what}."


def _text(value: Any) -> str | None:
    return value[:MAX_MESSAGE] if isinstance(value, str) and value else None
