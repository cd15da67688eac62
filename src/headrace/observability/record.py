"""The record of one call: all that was decided and all that happened."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from headrace.protocol.generation import Usage

CacheOutcome = Literal["hit", "shared", "miss", "off"]
CallStatus = Literal["ok", "error", "cancelled"]


class AttemptRecord(Struct, frozen=True, kw_only=True):
    """One attempt as it went. Times in seconds."""

    model: str
    provider: str
    reason: str
    started: float  # since the call's own start
    duration: float
    ttft: float | None = None
    predicted_ttft: float | None = None
    predicted_itl: float | None = None
    usage: Usage | None = None  # None where it used nothing
    cost: float | None = 0.0  # dollars of that usage
    error: str | None = None
    error_code: str | None = None


class CallRecord(Struct, frozen=True, kw_only=True):
    """One call. Times in seconds, `started_at` in Unix time, money in dollars.

    `itl` is the mean time between output tokens (None below two tokens). `input` is the
    normalised request and `output` the answer's text and tool calls; both are None where the
    configuration says that content is not recorded. `cost` is that of all attempts, None
    where a price is not known.
    """

    id: str  # the x-request-id
    started_at: float
    tenant: str
    endpoint: str
    model: str  # as the caller asked
    stream: bool
    status: CallStatus
    http_status: int
    duration: float
    route: str | None = None
    version: str | None = None  # of the configuration
    served_model: str | None = None
    provider: str | None = None
    attempts: tuple[AttemptRecord, ...] = ()
    skipped: tuple[dict[str, str], ...] = ()
    cache: CacheOutcome = "off"
    ttft: float | None = None
    itl: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    usage_provenance: str | None = None
    cost: float | None = 0.0
    finish_reason: str | None = None
    error: str | None = None
    error_code: str | None = None
    decision: dict[str, Any] | None = None  # facts and snapshot: the plan follows from them
    engine: dict[str, float] | None = None  # queued, prefill, decode
    input: dict[str, Any] | None = None
    output: dict[str, Any] | None = None
