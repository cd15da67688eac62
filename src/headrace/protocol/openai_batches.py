"""OpenAI's files and batches as they stand on the wire. Source: the OpenAI API reference."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

# A batch's lines go to these.
BatchEndpoint = Literal[
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"
]
BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
FilePurpose = Literal["batch", "batch_output"]


class File(Struct, frozen=True, kw_only=True):
    """A file's object. Times are Unix seconds; `bytes` is its size."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: FilePurpose
    status: Literal["processed"] = "processed"


class LineProblem(Struct, frozen=True, kw_only=True):
    """What is wrong with an input file: `line` counts from 1, `param` is a path in that line."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class LineProblems(Struct, frozen=True):
    """The first of them; the error file has them all."""

    data: tuple[LineProblem, ...]
    object: Literal["list"] = "list"


class RequestCounts(Struct, frozen=True):
    """Lines of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputDetails(Struct, frozen=True):
    """Of input tokens."""

    cached_tokens: int = 0


class OutputDetails(Struct, frozen=True):
    """Of output tokens."""

    reasoning_tokens: int = 0


class BatchUsage(Struct, frozen=True):
    """Tokens of all lines that were answered."""

    input_tokens: int = 0
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int = 0
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int = 0


class Batch(Struct, frozen=True, kw_only=True):
    """A batch's object. Times are Unix seconds."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: BatchEndpoint
    errors: LineProblems | None = None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: BatchStatus = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: BatchUsage = BatchUsage()
    metadata: dict[str, str] | None = None

    @property
    def live(self) -> bool:
        """Whether there is still something to do for it."""
        return self.status in ("validating", "in_progress", "finalizing", "cancelling")


def usage_of(body: dict[str, Any]) -> BatchUsage:
    """The usage that an answer of any of the endpoints tells of itself."""
    told = body.get("usage")
    if not isinstance(told, dict):
        return BatchUsage()
    into = _count(told, "input_tokens", "prompt_tokens")
    read = _count(told, "cache_read_input_tokens")  # Anthropic's, beside its input tokens
    into += read + _count(told, "cache_creation_input_tokens")
    out = _count(told, "output_tokens", "completion_tokens")
    cached = _details(told, "input_tokens_details", "prompt_tokens_details")
    reasoning = _details(told, "output_tokens_details", "completion_tokens_details")
    return BatchUsage(
        into,
        InputDetails(_count(cached, "cached_tokens") + read),
        out,
        OutputDetails(_count(reasoning, "reasoning_tokens")),
        into + out,
    )


def added(one: BatchUsage, other: BatchUsage) -> BatchUsage:
    """Both together."""
    return BatchUsage(
        one.input_tokens + other.input_tokens,
        InputDetails(
            one.input_tokens_details.cached_tokens + other.input_tokens_details.cached_tokens
        ),
        one.output_tokens + other.output_tokens,
        OutputDetails(
            one.output_tokens_details.reasoning_tokens
            + other.output_tokens_details.reasoning_tokens
        ),
        one.total_tokens + other.total_tokens,
    )


def list_body(items: list[File] | list[Batch], more: bool) -> bytes:
    """A page of objects; `more` says that there are others after it."""
    return msgspec.json.encode(
        {
            "object": "list",
            "data": items,
            "first_id": items[0].id if items else None,
            "last_id": items[-1].id if items else None,
            "has_more": more,
        }
    )


def _count(fields: dict[str, Any], *names: str) -> int:
    for name in names:
        value = fields.get(name)
        if isinstance(value, int):
            return value
    return 0


def _details(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    for name in names:
        value = fields.get(name)
        if isinstance(value, dict):
            return value
    return {}
