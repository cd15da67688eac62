"""A soak: many requests at once, some of them cancelled, the engine killed in between.

Nothing is lost and no stream is mixed with another. `HEADRACE_SOAK=10000 pytest
tests/conformance/test_soak.py` runs the long form.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

from headrace.runtime.engine import EngineOptions
from headrace.runtime.options import Limits
from headrace.runtime.process import EngineDied, EngineProcess
from headrace.runtime.request import Objectives, Request, SamplingParameters

REQUESTS = int(os.environ.get("HEADRACE_SOAK", "2000"))
REQUESTS_A_KILL = 200
AT_ONCE = 64
PROMPTS = [f"{'shared beginning ' * (index % 3)}prompt {index}: " for index in range(24)]
# Memory for about four of the 64: blocks run out, and sequences are preempted all the time.
OPTIONS = EngineOptions(kv_tokens=1024, block_size=8, limits=Limits(64, 16))


def asked(index: int) -> SamplingParameters:
    """A request's parameters follow from its prompt, and so does its text."""
    return SamplingParameters(
        max_tokens=10 + 7 * (index % 11),
        temperature=(0.0, 0.7, 1.3)[index % 3],
        seed=index,
        ignore_eos=True,
        stop=("e",) if index % 5 == 0 else (),
        frequency_penalty=1.0 if index % 7 == 0 else 0.0,
    )


class Soak:
    """One engine process, the dice, and what each prompt's text has to be."""

    def __init__(self, engine: EngineProcess) -> None:
        self.engine = engine
        self.dice = random.Random(0)
        self.expected: list[str] = []
        self.whole = self.cancelled = self.again = 0

    async def text(self, id: str, prompt: int, leave_after: int | None = None) -> str:
        """The text of one request; cut where the client leaves after so many outputs."""
        objectives = Objectives(priority=self.dice.randrange(3))
        request = Request(id, PROMPTS[prompt], asked(prompt), objectives=objectives)
        stream = self.engine.generate(request)
        pieces = []
        try:
            async for output in stream:
                pieces.append(output.text)
                if len(pieces) == leave_after:
                    break
        finally:
            await stream.aclose()
        return "".join(pieces)

    async def client(self, number: int) -> None:
        """One request, sent again where the engine died under it."""
        prompt = self.dice.randrange(len(PROMPTS))
        leave_after = self.dice.randrange(1, 8) if self.dice.random() < 0.2 else None
        for attempt in range(100):
            try:
                text = await self.text(f"{number}.{attempt}", prompt, leave_after)
            except EngineDied:
                self.again += 1
                await asyncio.sleep(0.05)
                continue
            if leave_after is None:
                assert text == self.expected[prompt], prompt
                self.whole += 1
            else:
                assert self.expected[prompt].startswith(text), prompt
                self.cancelled += 1
            return
        raise AssertionError(f"request {number} was never served")

    async def killer(self) -> None:
        """Kill the engine now and then, in the middle of its work."""
        for kill in range(1, REQUESTS // REQUESTS_A_KILL + 1):
            while self.whole + self.cancelled < (kill - 0.5) * REQUESTS_A_KILL:
                await asyncio.sleep(0.01)
            if self.engine.process is not None and self.engine.ready:
                os.kill(self.engine.process.pid, signal.SIGKILL)


async def test_nothing_is_lost_and_no_stream_is_mixed_with_another(tiny: Path) -> None:
    engine = EngineProcess(tiny, OPTIONS)
    await engine.start()
    soak = Soak(engine)
    soak.expected = [await soak.text(f"alone {index}", index) for index in range(len(PROMPTS))]
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with places:
            await soak.client(number)

    try:
        async with asyncio.timeout(60 + REQUESTS / 4), asyncio.TaskGroup() as group:
            group.create_task(soak.killer())
            for number in range(REQUESTS):
                group.create_task(one(number))
        async with asyncio.timeout(10):
            while engine.counters.running or engine.counters.waiting:
                await asyncio.sleep(0.01)
        assert engine.counters.kv_blocks_used == 0
    finally:
        await engine.close()
    assert soak.whole + soak.cancelled == REQUESTS
    assert engine.restarts == REQUESTS // REQUESTS_A_KILL
    assert soak.again > 0
