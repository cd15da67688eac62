"""What a server gives at several concurrencies: TTFT, ITL and tokens per second, p50 and p95.

    python benchmarks/serve.py                                  our own server, started for it
    python benchmarks/serve.py --base-url http://HOST:PORT/v1 --model NAME --name peer

Any OpenAI-compatible server can be measured, so the same script gives both sides of a
comparison. Every request is a streamed chat with a prompt of its own (seeded random words: the same
work for each server, nothing that a cache of prefixes or answers could reuse) and asks for exactly
`--tokens` tokens (`ignore_eos`). At each concurrency that many clients send one request after
another; the first request of each is a warm-up and is not counted.

TTFT: from sending to the first text. ITL: between two pieces of text, over all requests. Tokens per
second: the counted requests' output tokens, as the server's usage says, over the time they took
together. Times in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
from setting import free_port, keep, serve_command, setting, started

from headrace.cli.configuration import short_name
from headrace.registry.pull import pull

TEXT = (
    "river stone light paper winter engine copper garden signal window market thread bridge "
    "summer kettle orchard pencil harbour violin lantern meadow granite whistle ladder cotton"
)
WORDS = TEXT.split()
PATIENCE = 600.0  # seconds


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: when it was asked for and when each piece of text came, in seconds."""

    asked: float
    pieces: tuple[float, ...]
    tokens: int


def main() -> None:
    """Measure and print."""
    arguments = parse()
    if arguments.base_url:
        levels = asyncio.run(measure(arguments, arguments.base_url, arguments.model))
    else:
        pull(arguments.model)
        port = free_port()
        with started(serve_command(port, arguments.model)):
            url = f"http://127.0.0.1:{port}/v1"
            levels = asyncio.run(measure(arguments, url, short_name(arguments.model)))
    about = setting()
    print(f"{about['processor']}, {about['processors']} processors, load {about['load']:.1f}")
    if arguments.output:
        content = {"setting": about, "name": arguments.name, "model": arguments.model}
        keep(arguments.output, {**content, "levels": levels})


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base-url", help="an OpenAI-compatible server; default: our own")
    parser.add_argument("--model", default="smollm2-135m", help="reference, or the server's name")
    parser.add_argument("--name", default="headrace", help="of the server, for the report")
    parser.add_argument("--key", default="none", help="API key")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=4, help="counted requests of each client")
    parser.add_argument("--prompt-words", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--output", help="name of a file in benchmarks/results")
    return parser.parse_args()


async def measure(arguments: argparse.Namespace, url: str, model: str) -> list[dict[str, Any]]:
    """One row of figures for each concurrency."""
    chance = random.Random(20260101)
    levels = []
    timeout = aiohttp.ClientTimeout(total=None, sock_read=PATIENCE)
    headers = {"Authorization": f"Bearer {arguments.key}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        timeout=timeout, headers=headers, connector=connector
    ) as session:
        await wait_until_up(session, url)
        for concurrency in arguments.concurrency:
            rounds = arguments.requests + 1
            bodies = [
                [body(arguments, model, chance) for _ in range(rounds)] for _ in range(concurrency)
            ]
            answers = await load(session, url, bodies)
            levels.append(figures(arguments.name, concurrency, answers))
    return levels


async def wait_until_up(session: aiohttp.ClientSession, url: str) -> None:
    """Return when the server lists its models."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                async with session.get(f"{url}/models") as response:
                    if response.status < 500:
                        return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)


def body(arguments: argparse.Namespace, model: str, chance: random.Random) -> dict[str, Any]:
    """A request that no other is like."""
    words = " ".join(chance.choices(WORDS, k=arguments.prompt_words))
    return {
        "model": model,
        "messages": [{"role": "user", "content": words}],
        "max_tokens": arguments.tokens,
        "temperature": 0.8,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }


async def load(
    session: aiohttp.ClientSession, url: str, bodies: list[list[dict[str, Any]]]
) -> list[Answer]:
    """All clients at once, each its requests in turn; the answers that count."""
    together = asyncio.Barrier(len(bodies))

    async def client(own: list[dict[str, Any]]) -> list[Answer]:
        await ask(session, url, own[0])  # not counted
        await together.wait()
        return [await ask(session, url, one) for one in own[1:]]

    found = await asyncio.gather(*(client(own) for own in bodies))
    return [answer for answers in found for answer in answers]


async def ask(session: aiohttp.ClientSession, url: str, sent: dict[str, Any]) -> Answer:
    """One streamed answer."""
    asked = time.perf_counter()
    pieces: list[float] = []
    tokens = 0
    async with session.post(f"{url}/chat/completions", json=sent) as response:
        if response.status != 200:
            raise SystemExit(f"{response.status}: {await response.text()}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise SystemExit(f"the stream broke: {chunk['error']}")
            choices = chunk.get("choices")
            if choices and choices[0]["delta"].get("content"):
                pieces.append(time.perf_counter())
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    if not pieces:
        raise SystemExit("an answer had no text")
    return Answer(asked, tuple(pieces), tokens)


def figures(name: str, concurrency: int, answers: list[Answer]) -> dict[str, Any]:
    """The row of one concurrency, printed as it is made."""
    ttft = [1e3 * (a.pieces[0] - a.asked) for a in answers]
    itl = [1e3 * (b - a) for x in answers for a, b in zip(x.pieces, x.pieces[1:], strict=False)]
    began, ended = min(a.asked for a in answers), max(a.pieces[-1] for a in answers)
    tokens = sum(a.tokens for a in answers)
    first, between, speed = quantiles(ttft), quantiles(itl), tokens / (ended - began)
    print(
        f"{name:<10} concurrency {concurrency:>3}  "
        f"TTFT {first['p50']:8.1f} / {first['p95']:8.1f} ms  "
        f"ITL {between['p50']:6.1f} / {between['p95']:6.1f} ms  {speed:8.1f} tok/s"
    )
    return {
        "concurrency": concurrency,
        "requests": len(answers),
        "ttft_ms": first,
        "itl_ms": between,
        "tokens": tokens,
        "tokens_per_second": speed,
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """The nearest-rank p50 and p95."""
    ordered = sorted(values) or [0.0]
    return {f"p{q}": ordered[max(0, -(-q * len(ordered) // 100) - 1)] for q in (50, 95)}


if __name__ == "__main__":
    main()
