"""What deciding costs per request, and relaying per event; in microseconds.

    python benchmarks/decisions.py

Peer of each figure: one asyncio task that is created and awaited, in the same run, the smallest
thing any asynchronous server does per request. `x` is the ratio to it. The figures are kept in
`benchmarks/results/decisions.json`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from statistics import median

from setting import keep, setting

from headrace.cache.exact import ExactCache
from headrace.cache.flight import SingleFlight
from headrace.cache.key import cache_key
from headrace.config.schema import Configuration, Match, Model, Route, Within
from headrace.protocol.errors import UpstreamError
from headrace.protocol.generation import (
    Event,
    Finished,
    GenerationRequest,
    Message,
    TextDelta,
    Usage,
)
from headrace.protocol.sse import SSEDecoder
from headrace.providers.openai_chunks import Translator
from headrace.router.decide import Router
from headrace.router.facts import facts_of
from headrace.router.health import Health
from headrace.router.latency import Met, Speeds
from headrace.router.rules import Rulebook

TOKENS = 1000
ROUNDS = 15

HEADERS = {"x-tier": "gold", "x-headrace-tags": "team=search"}


def configuration(routes: int) -> Configuration:
    """So many rules of several conditions each; the last one has no model to look at first, and
    wants the cheapest of three within limits."""
    conditions = (
        Match(tags={"team": "none"}),
        Match(headers={"x-tier": "iron"}, tools=False),
        Match(prompt_over=1_000_000, endpoint="chat"),
        Match(model="other", key="somebody"),
        Match(hours="00:00-00:00", days=("sun",)),
    )
    last = Route(
        name="last",
        cheapest=("m1", "m2", "m3"),
        within=Within(max_cost=1.0, ttft_under=5.0),
        hedge_after=1.0,
    )
    return Configuration(
        models={f"m{i}": Model(source=f"s{i}", provider=f"p{i % 10}") for i in range(10)},
        routes=(
            Route(name="first", when=Match(model="first"), attempts=("m0", "m1")),
            *(
                Route(name=f"r{i}", when=conditions[i % len(conditions)], attempts=("m0",))
                for i in range(routes - 2)
            ),
            last,
        ),
    )


def known() -> Router:
    """A router that has seen calls to every host, some of which are not well."""
    router = Router(Health(time.monotonic), Speeds())
    for i in range(10):
        for _ in range(20):
            router.speeds.first(f"p{i % 10}", f"s{i}", Met(100 * i, 1.0), 0.1 * i)
            router.speeds.between(f"p{i % 10}", f"s{i}", Met(100 * i, 1.0), 0.01)
    for _ in range(3):
        router.health.failed("p2", "s2", UpstreamError("it broke"))
    return router


def request(model: str, characters: int) -> GenerationRequest:
    """A request to `model` of that many characters."""
    message = Message(role="user", content="x" * characters)
    return GenerationRequest(endpoint="chat", model=model, messages=(message,), temperature=0)


ANSWER: tuple[Event, ...] = (
    *(TextDelta(f" token{i}") for i in range(TOKENS)),
    Finished("stop", Usage(prompt_tokens=1, completion_tokens=TOKENS)),
)


async def generation() -> AsyncGenerator[Event, None]:
    """An execution that gives the loop a turn before each event."""
    for event in ANSWER:
        await asyncio.sleep(0)
        yield event


def timed(action: Callable[[], object], times: int) -> float:
    """Median microseconds of one action."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(times):
            action()
        rounds.append((time.perf_counter() - started) / times * 1e6)
    return median(rounds)


async def nothing() -> None:
    """The peer's work."""


async def task() -> float:
    """Microseconds of the peer."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(1000):
            await asyncio.create_task(nothing())
        rounds.append((time.perf_counter() - started) * 1e3)
    return median(rounds)


FRAMES = b"".join(
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" token%d"},"finish_reason":null}]}\n\n' % i
    for i in range(TOKENS)
)


def translated() -> None:
    """An upstream's bytes to events, as they come: four chunks a read."""
    decoder, translator = SSEDecoder(), Translator("up", str)
    size = 4 * len(FRAMES) // TOKENS
    for at in range(0, len(FRAMES), size):
        for item in decoder.feed(FRAMES[at : at + size]):
            for _ in translator.feed(item.data):
                pass


async def alone() -> float:
    """Microseconds per event without sharing."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        async for _ in generation():
            pass
        rounds.append((time.perf_counter() - started) / len(ANSWER) * 1e6)
    return median(rounds)


async def shared(listeners: int) -> float:
    """Microseconds per event of the execution, all listeners together."""
    rounds = []
    for _ in range(ROUNDS):
        flights = SingleFlight()

        async def listen(flights: SingleFlight = flights) -> None:
            joined = flights.join(b"k", generation)
            async for _ in joined:
                pass
            await joined.aclose()

        started = time.perf_counter()
        await asyncio.gather(*(listen() for _ in range(listeners)))
        rounds.append((time.perf_counter() - started) / len(ANSWER) * 1e6)
    return median(rounds)


def main() -> None:
    """Print the table."""
    unit = asyncio.run(task())
    cache = ExactCache(ttl=3600, max_bytes=1 << 26, clock=time.monotonic)
    cache.put(b"k", ANSWER)
    router = known()
    hundred, thousand = Rulebook(configuration(100)), Rulebook(configuration(1000))
    asked = hundred.asked
    small, last, large = request("first", 100), request("m1", 100), request("m1", 400_000)
    first_facts, last_facts = (facts_of(one, asked, HEADERS, 0.0) for one in (small, last))
    bare = asyncio.run(alone())
    figures = {
        "one asyncio task (peer)": unit,
        "decision, first of 100 rules": timed(
            lambda: router.decide(first_facts, hundred, "v"), 1000
        ),
        "decision, last of 100 rules": timed(lambda: router.decide(last_facts, hundred, "v"), 1000),
        "decision, last of 1 000 rules": timed(
            lambda: router.decide(last_facts, thousand, "v"), 100
        ),
        "facts, 100 characters": timed(lambda: facts_of(last, asked, HEADERS, 0.0), 2000),
        "facts, 400 000 characters": timed(lambda: facts_of(large, asked, HEADERS, 0.0), 2000),
        "cache key, 100 characters": timed(lambda: cache_key(small, "m"), 2000),
        "cache key, 400 000 characters": timed(lambda: cache_key(large, "m"), 50),
        "exact hit, 1 000 events": timed(lambda: cache.get(b"k"), 20_000),
        "upstream bytes to events, per event": timed(translated, 5) / TOKENS,
        "single flight, per event, 1 listener": asyncio.run(shared(1)) - bare,
        "single flight, per event, 16 listeners": asyncio.run(shared(16)) - bare,
    }
    about = setting()
    print(f"{about['processor']}, Python {about['python']}, load {about['load']:.1f}")
    for name, microseconds in figures.items():
        print(f"{name:<40} {microseconds:9.2f} µs   {microseconds / unit:7.2f} x")
    microseconds_of = {name: round(value, 2) for name, value in figures.items()}
    keep("decisions", {"setting": about, "microseconds": microseconds_of})


if __name__ == "__main__":
    main()
