"""What an evaluation found, read by rules."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from headrace.observability.qualities import FILE, Qualities, Quality
from tests.fakes.gateway import running
from tests.fakes.upstream import FakeUpstream, chat

CONFIGURATION = """
providers: {{up: {{base_url: "{url}"}}}}
models:
  a: {{provider: up, source: a, quality: 0.9}}
  b: {{provider: up, source: b, quality: 0.5}}
routes:
  - {{name: good, when: {{model: any}}, best: [a, b]}}
cache: {{enabled: false}}
log: {{directory: "{directory}"}}
"""


def measured(value: float) -> Quality:
    return Quality(
        value=value, low=value, high=value, samples=100, experiment="e1", measured_at=1.0
    )


async def test_a_measured_quality_goes_before_the_files_once_it_is_written_again(
    tmp_path: Path,
) -> None:
    file = tmp_path / "headrace.yaml"
    async with FakeUpstream() as upstream:
        upstream.answer(chat("x"))
        text = CONFIGURATION.format(url=upstream.base_url, directory=tmp_path)
        await asyncio.to_thread(file.write_text, text)
        async with running(None, file=file) as gateway:
            asked = {"model": "any", "messages": [{"role": "user", "content": "x"}]}

            async def served() -> str:
                async with gateway.post(asked) as response:
                    return response.headers["x-headrace-model"]

            assert await served() == "a"
            await asyncio.to_thread(Qualities(tmp_path).keep, "a", measured(0.1))
            await asyncio.to_thread(file.write_text, text + "\n")
            async with asyncio.timeout(5):
                while await served() != "b":
                    await asyncio.sleep(0.02)


def test_a_file_that_is_not_in_order_leaves_what_was_known(tmp_path: Path) -> None:
    qualities = Qualities(tmp_path)
    qualities.keep("a", measured(0.5))
    qualities.keep("b", measured(0.7))
    qualities.refresh()
    assert qualities.values == {"a": 0.5, "b": 0.7}
    (tmp_path / FILE).write_bytes(b'{"a": {"value": 7}}')
    qualities.refresh()
    assert qualities.values == {"a": 0.5, "b": 0.7}
    with pytest.raises(msgspec.DecodeError):
        qualities.keep("a", measured(0.6))
