"""What the gateway adds to a call: the same load against an upstream, with and without it.

    python benchmarks/gateway.py [--calls 2000] [--concurrency 1 16 64]

Everything runs on this machine, each part in a process of its own: a bare upstream that answers
at once, the gateway as it ships (records, metrics and cache on), and the clients. The gateway's
time is the difference of the medians; the upstream's own answer is the peer of every ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import aiohttp
from setting import keep, setting

from headrace.app import App, serve
from headrace.config.load import Loaded, version_of
from headrace.config.schema import Configuration, Log, Model, UpstreamProvider

TOKENS = 16
PATH = "/v1/chat/completions"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _answer() -> bytes:
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    usage = {"prompt_tokens": 8, "completion_tokens": TOKENS, "total_tokens": 8 + TOKENS}
    events = [
        _event({**head, "choices": [{"index": 0, "delta": {"content": " token"}}]})
        for _ in range(TOKENS)
    ]
    stop = {"index": 0, "delta": {}, "finish_reason": "stop"}
    events.append(_event({**head, "choices": [stop]}))
    events.append(_event({**head, "choices": [], "usage": usage}))
    events.append(b"data: [DONE]\n\n")
    return HEAD + b"".join(b"%x\r\n%b\r\n" % (len(e), e) for e in events) + b"0\r\n\r\n"


class _Upstream(asyncio.Protocol):
    """Answers every whole request with the same bytes."""

    answer = _answer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        if end and len(body) >= length:
            self.buffer = b""
            self.transport.write(self.answer)


def _run_upstream(listener: socket.socket) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(_Upstream, sock=listener)
        await server.serve_forever()

    asyncio.run(run())


def _run_gateway(listener: socket.socket, upstream: str, directory: str, ready: Event) -> None:
    configuration = Configuration(
        providers={"up": UpstreamProvider(base_url=upstream)},
        models={"m": Model(source="m", provider="up")},
        log=Log(directory=directory),
    )
    serve(App.build(Loaded(configuration, version_of(configuration)), {}), listener, ready.set)


async def _load(url: str, calls: int, concurrency: int, *, stream: bool) -> list[float]:
    """Seconds to the first byte of the answer's body (stream), or to its end (whole)."""
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    left = iter(range(calls))
    times: list[float] = []
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def work() -> None:
            for _ in left:
                began = time.perf_counter()
                async with session.post(url + PATH, json=body) as response:
                    if response.status != 200:
                        raise RuntimeError(await response.text())
                    if stream:
                        await response.content.readany()
                        times.append(time.perf_counter() - began)
                    await response.read()
                    if not stream:
                        times.append(time.perf_counter() - began)

        await asyncio.gather(*(work() for _ in range(concurrency)))
    return sorted(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    arguments = parser.parse_args()
    about = setting()
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=2048) for _ in range(2)]
    upstream, gateway = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in listeners)
    ready = multiprocessing.Event()
    with tempfile.TemporaryDirectory() as directory:
        processes = [
            multiprocessing.Process(target=_run_upstream, args=(listeners[0],)),
            multiprocessing.Process(
                target=_run_gateway,
                args=(listeners[1], f"{upstream}/v1", str(Path(directory)), ready),
            ),
        ]
        for process in processes:
            process.start()
        ready.wait(60)
        print(f"{TOKENS} tokens an answer, {arguments.calls} calls a row; times in ms")
        columns = "".join(f"{name:>12}" for name in ("direct p50", "p50", "p99", "added p50"))
        print(f"{'':8}{'at once':>8}{columns}{'calls/s':>9}")
        try:
            rows = [
                _row(upstream, gateway, arguments.calls, concurrency, stream=stream)
                for stream in (False, True)
                for concurrency in arguments.concurrency
            ]
        finally:
            for process in processes:
                process.terminate()
                process.join()
    keep("gateway", {"setting": about, "tokens": TOKENS, "calls": arguments.calls, "rows": rows})


def _row(
    upstream: str, gateway: str, calls: int, concurrency: int, *, stream: bool
) -> dict[str, Any]:
    asyncio.run(_load(gateway, max(calls // 10, 1), concurrency, stream=stream))  # warm
    direct = asyncio.run(_load(upstream, calls, concurrency, stream=stream))
    began = time.perf_counter()
    through = asyncio.run(_load(gateway, calls, concurrency, stream=stream))
    rate = calls / (time.perf_counter() - began)
    milliseconds = {
        "direct_p50": 1e3 * statistics.median(direct),
        "p50": 1e3 * statistics.median(through),
        "p99": 1e3 * through[int(0.99 * len(through))],
        "added_p50": 1e3 * (statistics.median(through) - statistics.median(direct)),
    }
    kind = "stream" if stream else "whole"
    figures = "".join(f"{value:12.2f}" for value in milliseconds.values())
    print(f"{kind:8}{concurrency:8}{figures}{rate:9.0f}")
    figures_kept = {name: round(value, 3) for name, value in milliseconds.items()}
    return {
        "kind": kind,
        "at_once": concurrency,
        "milliseconds": figures_kept,
        "calls_per_second": round(rate),
    }


if __name__ == "__main__":
    main()
