"""The process that waits for a model: it is used once, dies alone, and never outlives anybody."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from headrace.runtime.engine import EngineOptions
from headrace.runtime.process import EngineProcess
from headrace.runtime.request import Request, SamplingParameters
from headrace.runtime.spare import Spare, Worker

OPTIONS = EngineOptions(backend="reference", kv_tokens=1024)


async def said(engine: EngineProcess) -> str:
    asked = Request("a", "Hi", SamplingParameters(temperature=0, max_tokens=4, ignore_eos=True))
    return "".join([output.text async for output in engine.generate(asked)])


async def ready(spare: Spare) -> int:
    """The id of the spare process, begun without delay."""
    spare.begin()
    assert spare.coming is not None
    return (await spare.coming).process.pid


async def test_an_engine_takes_the_process_that_waits(tiny: Path) -> None:
    spare = Spare(lambda: True)
    waiting = await ready(spare)
    engine = EngineProcess(tiny, OPTIONS, spare=spare)
    await engine.start()
    assert engine.process is not None
    assert engine.process.pid == waiting
    assert await said(engine)
    await engine.close()
    await spare.close()


async def test_a_spare_process_that_was_killed_is_no_fault_of_the_next_load(tiny: Path) -> None:
    spare = Spare(lambda: True)
    os.kill(await ready(spare), signal.SIGKILL)
    engine = EngineProcess(tiny, OPTIONS, spare=spare)
    await engine.start()
    assert await said(engine)
    await engine.close()
    await spare.close()


class Killed(Spare):
    """The process that it gives dies before it says anything."""

    async def take(self) -> Worker:
        worker = await super().take()
        worker.process.kill()
        return worker


async def test_a_process_killed_while_it_loads_is_replaced_once(tiny: Path) -> None:
    engine = EngineProcess(tiny, OPTIONS, spare=Killed())
    await engine.start()
    assert await said(engine)
    await engine.close()


async def test_none_is_kept_where_none_is_wanted() -> None:
    spare = Spare()
    spare.begin()
    assert spare.coming is None


async def test_closing_ends_it() -> None:
    spare = Spare(lambda: True)
    spare.begin()
    assert spare.coming is not None
    worker = await spare.coming
    async with asyncio.timeout(10):
        await spare.close()
    assert worker.process.returncode == 0


PLATFORM = """
import asyncio
from headrace.runtime.spare import Spare
async def main():
    spare = Spare(lambda: True)
    spare.begin()
    print((await spare.coming).process.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_it_does_not_outlive_a_platform_that_was_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PLATFORM], stdout=subprocess.PIPE, text=True
    ) as platform:
        assert platform.stdout is not None
        descriptor = os.pidfd_open(int(platform.stdout.readline()))
        platform.kill()
    # a pidfd becomes readable when its process ends
    ended = select.poll()
    ended.register(descriptor, select.POLLIN)
    assert ended.poll(10_000)
    os.close(descriptor)
