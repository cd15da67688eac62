"""Servers side by side: started one at a time, asked over HTTP as their users would.

Text comes in events; an event may bring several tokens or, where a character is not whole yet,
none. Prompts are token ids, so that no tokenizer makes the work differ.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from setting import free_port, serve_command

from .catalogue import Variant
from .driver import environment_variables
from .llamacpp import server_command
from .protocol import Answer, Setup

PATIENCE = 300.0  # seconds
FAREWELL = 20.0  # seconds that a server has to end
VLLM = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else it leaves one processor to its front alone
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "HF_HUB_OFFLINE": "1",
}
SERVERS = ("headrace", "llamacpp", "vllm")


@dataclass(frozen=True, slots=True)
class Call:
    """A prompt, how many tokens it is to be answered by, and when, in seconds."""

    prompt: list[int]
    new: int
    arrives: float


@contextmanager
def serving(variant: Variant, environment: Path, setup: Setup) -> Iterator[str]:
    """A server that is ready; gives the base of its URLs."""
    port = free_port()
    process = subprocess.Popen(
        command(variant, environment, setup, port),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment_variables(variant.engine, environment, setup.threads)
        | (VLLM if variant.engine == "vllm" else {}),
    )
    url = f"http://127.0.0.1:{port}"
    try:
        asyncio.run(ready(url, process))
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def command(variant: Variant, environment: Path, setup: Setup, port: int) -> list[str]:
    """What starts the server of an engine. Raises ValueError where it has none."""
    if variant.engine == "headrace":
        return serve_command(port, setup.model)
    if variant.engine == "llamacpp":
        return server_command(environment, setup, port)
    if variant.engine != "vllm":
        raise ValueError(f"{variant.engine} has no server")
    given = {
        "--port": port,
        "--dtype": "bfloat16",
        "--max-model-len": setup.context,
        "--max-num-seqs": setup.sequences,
    }
    words = [str(word) for pair in given.items() for word in pair]
    served = [str(environment / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server"]
    return [*served, "--model", setup.model, "--no-enable-prefix-caching", *words]


async def ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when a server answers that it is healthy. Raises RuntimeError where it ended."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(PATIENCE):
        while True:
            try:
                async with session.get(f"{url}/v1/models") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            if process.poll() is not None:
                raise RuntimeError(f"a server ended before it answered: {process.args!r}")
            await asyncio.sleep(0.02)


async def played(url: str, calls: Sequence[Call], at_once: int = sys.maxsize) -> list[Answer]:
    """The calls at their times, at most `at_once` together; times since the first one's start."""
    # a connection for each: some servers close one that they have answered on
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        async with session.get(f"{url}/v1/models") as response:
            model = (await response.json())["data"][0]["id"]
        gate = asyncio.Semaphore(min(at_once, len(calls)))
        began = time.perf_counter()
        return await asyncio.gather(
            *(one(session, f"{url}/v1/completions", model, call, gate, began) for call in calls)
        )


async def one(
    session: aiohttp.ClientSession,
    url: str,
    model: str,
    call: Call,
    gate: asyncio.Semaphore,
    began: float,
) -> Answer:
    """One streamed answer: when it was to begin and when each piece of text came."""
    await asyncio.sleep(began + call.arrives - time.perf_counter())
    async with gate:
        asked = call.arrives or time.perf_counter() - began
        body: dict[str, Any] = {
            "model": model,
            "prompt": call.prompt,
            "max_tokens": call.new,
            "temperature": 0.8,
            "ignore_eos": True,
            "stream": True,
        }
        times: list[float] = []
        async with session.post(url, json=body) as response:
            if response.status != 200:
                raise SystemExit(f"{response.status}: {await response.text()}")
            async for line in response.content:
                if line.startswith(b"data: {"):
                    choices = json.loads(line[6:]).get("choices")
                    if choices and choices[0].get("text"):
                        times.append(time.perf_counter() - began)
        return Answer(asked, times)
