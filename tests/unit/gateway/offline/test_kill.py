"""A platform that is killed while a batch runs, and started again."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import openai

from tests.fakes.upstream import FakeUpstream, Gate, Script, chat
from tests.unit.gateway.offline.test_batches import ended, jsonl, line, lines_of, submitted


@contextlib.asynccontextmanager
async def serving(file: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """The platform as a process; killed at the end."""
    command = [sys.executable, "-m", "headrace.cli.main", "serve", str(file), "--port", str(port)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_after_a_kill_no_line_is_lost_and_none_is_told_twice(
    first: FakeUpstream, tmp_path: Path, free_port: int
) -> None:
    gate = Gate()
    first.answer(chat("1"), chat("2"), chat("3"), Script([gate]))
    file = tmp_path / "headrace.yaml"
    file.write_text(f"""
providers: {{up: {{base_url: "{first.base_url}"}}}}
models: {{smart: {{provider: up, source: x}}}}
batches: {{concurrency: 1}}
log: {{directory: "{tmp_path}"}}
""")
    names = [f"q{i}" for i in range(8)]
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{free_port}/v1", api_key="none", max_retries=0
    ) as client:
        async with serving(file, free_port):
            batch_id = await submitted(client, jsonl(*map(line, names)))
            await gate.reached.wait()
        output = tmp_path / "files" / f"file-{batch_id.removeprefix('batch_')}-output"
        with output.open("ab") as torn:  # what a kill in the middle of a write leaves
            torn.write(b'{"id":"batch_req_1","custom_id":"q3","resp')
        first.answer(chat("again"))
        async with serving(file, free_port):
            batch = await ended(client, batch_id)
            assert batch.status == "completed"
            answers = await lines_of(client, batch.output_file_id)
    assert [one["custom_id"] for one in answers] == names
    assert [one["response"]["status_code"] for one in answers] == [200] * len(names)
    assert len(first.received) == len(names) + 1  # the one under way was asked twice
    assert batch.error_file_id is None
