"""Log lines: one for each request, in numbers and names."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from headrace.config.schema import Logging
from headrace.observability.lines import QUEUE, Lines
from tests.fakes.gateway import configured, running
from tests.fakes.upstream import FakeUpstream, chat


async def test_each_request_is_one_line_of_json_without_its_content(
    first: FakeUpstream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first.answer(chat("a secret answer"))
    settings = replace(configured(tmp_path, first), logging=Logging(requests=True, format="json"))
    asked: dict[str, Any] = {
        "model": "smart",
        "messages": [{"role": "user", "content": "a secret question"}],
    }
    async with running(settings) as gateway:
        async with gateway.post(asked, authorization="Bearer sk-mine") as response:
            request_id = response.headers["x-request-id"]
            await response.read()
        async with gateway.http.get(f"{gateway.url}/v1/models/none") as response:
            assert response.status == 404
        logging.getLogger("headrace.test").warning("Something %s.", "happened")
    said = capsys.readouterr().err
    lines = [json.loads(line) for line in said.splitlines()]
    (call,) = [line for line in lines if line["event"] == "call"]
    assert call["request_id"] == request_id
    assert (call["model"], call["served_model"], call["provider"]) == ("smart", "first", "up-first")
    assert (call["status"], call["prompt_tokens"], call["key"]) == (200, 7, "default")
    assert call["cost"] > 0
    assert call["ttft"] is None or call["ttft"] > 0
    (other,) = [line for line in lines if line["event"] == "request"]
    assert (other["method"], other["path"], other["status"]) == ("GET", "/v1/models/none", 404)
    (logged,) = [line for line in lines if line.get("logger") == "headrace.test"]
    assert (logged["level"], logged["message"]) == ("warning", "Something happened.")
    assert "secret" not in said
    assert "sk-" not in said


async def test_without_being_asked_for_nothing_is_said(
    first: FakeUpstream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with (
        running(configured(tmp_path, first)) as gateway,
        gateway.http.get(f"{gateway.url}/v1/models") as response,
    ):
        assert response.status == 200
    assert capsys.readouterr().err == ""


def test_a_reader_that_does_not_read_stops_nobody_and_drops_are_counted() -> None:
    full, written = threading.Event(), []

    def write(line: str) -> None:
        full.wait()
        written.append(line)

    lines = Lines(write, lambda: 0.0)
    for number in range(QUEUE + 100):
        lines.say({"number": number})
    full.set()
    lines.close(10)
    dropped = sum(json.loads(line).get("lines", 0) for line in written)
    kept = sum("number" in line for line in written)
    assert dropped >= 99
    assert dropped + kept == QUEUE + 100
