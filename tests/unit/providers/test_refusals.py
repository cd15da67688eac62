"""What an upstream's error answer becomes."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from headrace.protocol.errors import RateLimited, RefusedByUpstream, UpstreamError
from headrace.providers.refusals import (
    MAX_RETRY_AFTER,
    Refusal,
    error_for,
    read_refusal,
    retry_after,
)

NOW = 1_700_000_000.0


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_refused_request_keeps_status_message_field_and_code(status: int) -> None:
    refusal = Refusal(message="bad x", param="x", code="too_big")
    error = error_for("up", status, refusal)
    assert isinstance(error, RefusedByUpstream)
    assert (error.status, error.message, error.param, error.code) == (
        status,
        "bad x",
        "x",
        "too_big",
    )


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_of_ours_is_no_fault_of_the_caller_and_not_quoted(status: int) -> None:
    error = error_for("up", status, Refusal(message="Incorrect key sk-hun*er2"))
    assert isinstance(error, UpstreamError)
    assert "hun" not in str(error)
    assert "key" in str(error)


@pytest.mark.parametrize("status", [402, 408, 409, 451, 500, 503])
def test_anything_else_is_the_upstreams_fault(status: int) -> None:
    error = error_for("up", status, Refusal(message="busy"), 3.0)
    assert isinstance(error, UpstreamError)
    assert (error.status, error.upstream_status, error.retry_after) == (502, status, 3.0)
    assert str(error) == f"Provider 'up' answered with status {status}: busy"


def test_a_rate_limit_keeps_its_wait() -> None:
    error = error_for("up", 429, Refusal(), 3.0)
    assert isinstance(error, RateLimited)
    assert error.retry_after == 3.0


def test_a_long_message_is_cut() -> None:
    for body in (b'{"error": {"message": "%b"}}', b'{"error": "%b"}'):
        assert len(read_refusal(body % (b"x" * 10_000)).message) == 500


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "m"}}', "m"),
        (b'{"error": "m"}', "m"),
        (b'{"detail": "m"}', "m"),
        (b'{"message": "m", "object": "error"}', "m"),
        (b'{"error": {"message": 3}}', ""),
        (b"<html>", ""),
        (b"\xff", ""),
        (b"[]", ""),
        (b"3", ""),
        (b"", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_error_bodies_of_all_shapes_are_read(body: bytes, message: str) -> None:
    assert read_refusal(body).message == message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 1.5 ", 1.5),
        ("0", 0.0),
        ("-3", 0.0),
        ("1e9", MAX_RETRY_AFTER),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
        (formatdate(NOW + 30, usegmt=True), 30.0),
        (formatdate(NOW - 30, usegmt=True), 0.0),
        ("Wed, 99 Foo 2020 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": header}, lambda: NOW) == seconds


def test_no_retry_after_is_none() -> None:
    assert retry_after({}, lambda: NOW) is None
