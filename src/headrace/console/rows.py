"""A call as the list shows it: small enough to send by the hundred."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from headrace.observability.record import CallRecord

PREVIEW = 160  # characters


class CallRow(Struct, frozen=True, kw_only=True):
    """One line of the list. Times in seconds, `started_at` in Unix time, money in dollars."""

    id: str
    started_at: float
    model: str
    served_model: str | None
    provider: str | None
    status: str
    http_status: int
    error_code: str | None
    cache: str
    duration: float
    ttft: float | None
    itl: float | None
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    attempts: int
    preview: str


def row(record: CallRecord) -> CallRow:
    """The line for a record."""
    return CallRow(
        id=record.id,
        started_at=record.started_at,
        model=record.model,
        served_model=record.served_model,
        provider=record.provider,
        status=record.status,
        http_status=record.http_status,
        error_code=record.error_code,
        cache=record.cache,
        duration=record.duration,
        ttft=record.ttft,
        itl=record.itl,
        prompt_tokens=record.prompt_tokens,
        completion_tokens=record.completion_tokens,
        cost=record.cost,
        attempts=len(record.attempts),
        preview=preview(record.input),
    )


def preview(recorded: dict[str, Any] | None) -> str:
    """The beginning of what the caller last said, on one line; empty where it is not recorded."""
    if not recorded:
        return ""
    messages = recorded.get("messages")
    if isinstance(messages, list) and messages:
        last = messages[-1]
        content = last.get("content") if isinstance(last, dict) else None
        return _line(content)
    said = next((recorded[name] for name in ("prompt", "query", "input") if name in recorded), None)
    return _line(said)


def _line(content: object) -> str:
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        content = " ".join(text for text in texts if isinstance(text, str))
    return " ".join(content[: 4 * PREVIEW].split())[:PREVIEW] if isinstance(content, str) else ""
