"""A changed file is in force for the next call; a bad one changes nothing."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli.main import app
from tests.fakes.gateway import Running, running
from tests.fakes.upstream import FakeUpstream, Gate, Script, chat

ASKED = {"model": "smart", "messages": [{"role": "user", "content": "Hi"}]}
FILE = """\
providers:
  one: {{base_url: "{one}", key: env:TEST_KEY}}
  two: {{base_url: "{two}"}}
models:
  first: {{source: a, provider: one}}
  second: {{source: b, provider: two}}
routes:
  - {{name: {name}, when: {{model: smart}}, try: [{model}]}}
log: {{directory: "{directory}"}}
"""


class Written:
    """The file of a gateway before two upstreams."""

    def __init__(self, directory: Path, one: FakeUpstream, two: FakeUpstream) -> None:
        self.path = directory / "headrace.yaml"
        self._fields = {"one": one.base_url, "two": two.base_url, "directory": str(directory)}

    def write(self, name: str, model: str = "first", extra: str = "", **fields: str) -> None:
        given = {**self._fields, "name": name, "model": model, **fields}
        self.path.write_text(FILE.format(**given) + extra)


@pytest.fixture
def file(tmp_path: Path, first: FakeUpstream, second: FakeUpstream) -> Written:
    written = Written(tmp_path, first, second)
    written.write("before")
    return written


async def reload(gateway: Running) -> None:
    assert gateway.app.reloader is not None
    await gateway.app.reloader.reload()


async def route_of(gateway: Running) -> str:
    async with gateway.post(ASKED) as response:
        await response.read()
        return response.headers["x-headrace-route"].partition("@")[0]


async def test_a_written_file_is_in_force_soon_without_a_word(file: Written) -> None:
    async with running(None, file=file.path) as gateway:
        assert await route_of(gateway) == "before"
        file.write("after", "second")
        async with asyncio.timeout(10):
            while await route_of(gateway) != "after":
                await asyncio.sleep(0.02)


async def test_a_running_stream_is_not_dropped_and_ends_on_what_it_began_with(
    file: Written, first: FakeUpstream
) -> None:
    gate = Gate()
    first.answer(Script([*chat("a").parts[:2], gate, *chat("b").parts]))
    async with running(None, file=file.path) as gateway:
        async with gateway.post({**ASKED, "stream": True}) as response:
            await gate.reached.wait()
            file.write("after", "second", one="http://127.0.0.1:9")  # its provider changes too
            await reload(gateway)
            assert await route_of(gateway) == "after"
            gate.opened.set()
            assert (await response.text()).endswith("data: [DONE]\n\n")
        old, new = {record.version for record in await gateway.records()}
        assert old != new


async def test_two_hundred_streams_go_on_over_a_reload_and_its_rollback(
    file: Written, first: FakeUpstream
) -> None:
    gate = Gate()
    first.answer(Script([*chat("a").parts[:2], gate, *chat("b").parts]))
    async with running(None, file=file.path) as gateway:

        async def one() -> bool:
            async with gateway.post({**ASKED, "stream": True}) as response:
                return (await response.text()).endswith("data: [DONE]\n\n")

        streams = [asyncio.create_task(one()) for _ in range(200)]
        await first.arrived(200)
        # Both providers change, one after the other: each is closed when nobody needs it.
        file.write("after", "second", two="http://127.0.0.1:9")
        await reload(gateway)
        file.write("again", "second", one="http://127.0.0.1:9", two="http://127.0.0.1:9")
        await reload(gateway)
        assert await route_of(gateway) == "again"
        gate.opened.set()
        assert all(await asyncio.gather(*streams))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("nonsense: 1\n", r"headrace\.yaml:10: nonsense: unknown field"),
        ("server: {port: 1}\n", "'server' is read when the server starts"),
    ],
)
async def test_a_bad_file_is_refused_with_line_and_field_and_the_old_one_stays(
    file: Written, caplog: pytest.LogCaptureFixture, extra: str, said: str
) -> None:
    async with running(None, file=file.path) as gateway:
        with caplog.at_level(logging.ERROR, "headrace.gateway.reload"):
            file.write("after", extra=extra)
            async with asyncio.timeout(10):
                while not caplog.records:
                    await asyncio.sleep(0.02)
        assert await route_of(gateway) == "before"
    assert re.search(said, caplog.messages[0])


async def test_history_rollback_and_replay(file: Written) -> None:
    async with running(None, file=file.path) as gateway:
        await route_of(gateway)
        file.write("after", "second")
        await reload(gateway)
        await route_of(gateway)
        records = await gateway.records()

        def run(*arguments: str) -> str:
            result = CliRunner().invoke(app, [*arguments, "--config", str(file.path)])
            assert result.exit_code == 0, result.output
            return result.stdout

        listed = await asyncio.to_thread(run, "config", "history")
        assert [line.split()[2] for line in listed.splitlines()] == [r.version for r in records]
        for record in records:
            replayed = await asyncio.to_thread(run, "route", "replay", record.id)
            assert "the same, to the bit" in replayed
            assert f"route      {record.route}" in replayed
        await asyncio.to_thread(run, "config", "rollback")
        await reload(gateway)
        assert await route_of(gateway) == "before"
