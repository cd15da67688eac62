"""The engine in its own process: it dies alone, comes back, and ends when it should."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.runtime.engine import EngineOptions
from headrace.runtime.process import (
    AdapterRefused,
    EngineDied,
    EngineFailed,
    EngineProcess,
    RestRefused,
)
from headrace.runtime.request import Request, RequestRefused, SamplingParameters
from tests.fakes.adapter import write_adapter

OPTIONS = EngineOptions(backend="reference", kv_tokens=1024)
ENDLESS = SamplingParameters(temperature=0, ignore_eos=True)


@pytest.fixture
async def engine(tiny: Path) -> AsyncIterator[EngineProcess]:
    process = EngineProcess(tiny, OPTIONS)
    await process.start()
    yield process
    await process.close()


def pid(engine: EngineProcess) -> int:
    assert engine.process is not None
    return engine.process.pid


async def until_ready(engine: EngineProcess) -> None:
    async with asyncio.timeout(30):
        while not engine.ready:
            await asyncio.sleep(0.01)


async def text(engine: EngineProcess, id: str, sampling: SamplingParameters) -> str:
    return "".join([output.text async for output in engine.generate(Request(id, "Hi", sampling))])


async def test_many_requests_share_the_process(engine: EngineProcess) -> None:
    sampling = SamplingParameters(temperature=0, max_tokens=20, ignore_eos=True)
    texts = await asyncio.gather(*(text(engine, str(index), sampling) for index in range(40)))
    assert len(set(texts)) == 1
    assert engine.counters.steps < 40 * 20


async def test_killing_the_process_fails_what_runs_and_it_starts_again(
    engine: EngineProcess,
) -> None:
    stream = engine.generate(Request("a", "Hi", ENDLESS))
    await anext(stream)
    os.kill(pid(engine), signal.SIGKILL)
    with pytest.raises(EngineDied, match="ended while the request ran"):
        async for _ in stream:
            pass
    await until_ready(engine)
    assert engine.restarts == 1
    assert await text(engine, "b", SamplingParameters(max_tokens=4, ignore_eos=True))


async def test_a_call_to_an_engine_that_died_waits_until_it_is_back(engine: EngineProcess) -> None:
    os.kill(pid(engine), signal.SIGKILL)
    while engine.ready:
        await asyncio.sleep(0.01)
    few = SamplingParameters(max_tokens=4, ignore_eos=True)
    assert all(await asyncio.gather(*(text(engine, str(index), few) for index in range(20))))
    assert engine.restarts == 1


async def test_a_call_that_waits_for_an_engine_is_answered_when_it_is_closed(
    engine: EngineProcess,
) -> None:
    os.kill(pid(engine), signal.SIGKILL)
    while engine.ready:
        await asyncio.sleep(0.01)
    waiting = asyncio.create_task(text(engine, "a", ENDLESS))
    await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(EngineDied):
        await waiting


async def test_closing_a_stream_stops_its_generation(engine: EngineProcess) -> None:
    stream = engine.generate(Request("a", "Hi", ENDLESS))
    await anext(stream)
    await stream.aclose()
    async with asyncio.timeout(10):
        while engine.counters.cancelled == 0:
            await asyncio.sleep(0.01)
    assert engine.counters.running == 0
    assert engine.counters.kv_blocks_used == 0
    assert engine.counters.generated_tokens < 500


async def test_a_refusal_reaches_its_caller_alone(engine: EngineProcess) -> None:
    with pytest.raises(RequestRefused) as refused:
        await anext(engine.generate(Request("long", "y" * 600, ENDLESS)))
    assert refused.value.details == {"limit": 512, "tokens": 600}
    assert await text(engine, "b", SamplingParameters(max_tokens=4, ignore_eos=True))


async def test_a_model_that_cannot_be_loaded_is_said_why(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(EngineFailed, match=r"broken\.gguf"):
        await EngineProcess(path, OPTIONS).start()


async def test_close_ends_the_process(tiny: Path) -> None:
    engine = EngineProcess(tiny, OPTIONS)
    await engine.start()
    process = engine.process
    assert process is not None
    await engine.close()
    assert process.returncode == 0
    with pytest.raises(EngineDied):
        await anext(engine.generate(Request("late", "Hi", ENDLESS)))


PLATFORM = """
import asyncio, sys
from pathlib import Path
from headrace.runtime.engine import EngineOptions
from headrace.runtime.process import EngineProcess
async def main():
    engine = EngineProcess(Path(sys.argv[1]), EngineOptions(backend="reference", kv_tokens=1024))
    await engine.start()
    print(engine.process.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_an_engine_does_not_outlive_a_platform_that_was_killed(tiny: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PLATFORM, str(tiny)], stdout=subprocess.PIPE, text=True
    ) as platform:
        assert platform.stdout is not None
        worker = int(platform.stdout.readline())
        descriptor = os.pidfd_open(worker)
        platform.kill()
    # a pidfd becomes readable when its process ends
    ended = select.poll()
    ended.register(descriptor, select.POLLIN)
    assert ended.poll(10_000)
    os.close(descriptor)


async def test_adapters_come_and_go_while_a_stream_runs(
    engine: EngineProcess, tmp_path: Path
) -> None:
    sampling = SamplingParameters(temperature=0, max_tokens=12, ignore_eos=True)
    stream = engine.generate(Request("a", "Hi", ENDLESS))
    await anext(stream)
    base = await text(engine, "base", sampling)
    await engine.load_adapter("mine", write_adapter(tmp_path / "mine", 1))
    mine = Request("b", "Hi", sampling, adapter="mine")
    said = "".join([output.text async for output in engine.generate(mine)])
    assert said != base
    await anext(stream)
    await engine.drop_adapter("mine")
    with pytest.raises(RequestRefused, match="no adapter 'mine'"):
        await anext(engine.generate(mine))
    with pytest.raises(AdapterRefused, match="no adapter 'mine'"):
        await engine.drop_adapter("mine")
    with pytest.raises(AdapterRefused, match="no adapter_config"):
        await engine.load_adapter("mine", tmp_path)
    await stream.aclose()


async def test_a_process_that_starts_again_has_its_adapters_but_those_that_are_gone(
    engine: EngineProcess, tmp_path: Path
) -> None:
    for seed, name in enumerate(("kept", "gone")):
        await engine.load_adapter(name, write_adapter(tmp_path / name, seed))
    (tmp_path / "gone" / "adapter_config.json").unlink()
    os.kill(pid(engine), signal.SIGKILL)
    while engine.restarts == 0:
        await asyncio.sleep(0.01)
    kept = Request("a", "Hi", SamplingParameters(max_tokens=2, ignore_eos=True), adapter="kept")
    assert [output async for output in engine.generate(kept)]
    assert list(engine.adapters) == ["kept"]
    (tmp_path / "kept" / "adapter_config.json").unlink()
    await engine.close()
    await engine.start()  # closed and started: without what is gone, too
    assert not engine.adapters


async def test_a_model_whose_first_adapters_cannot_be_loaded_says_so(
    tiny: Path, tmp_path: Path
) -> None:
    process = EngineProcess(tiny, OPTIONS, {"mine": tmp_path / "nowhere"})
    with pytest.raises(EngineFailed, match="nowhere"):
        await process.start()
    assert not process.ready


@pytest.mark.parametrize("backend", ["reference", "cpu"])
async def test_an_engine_without_requests_uses_no_processor_time(tiny: Path, backend: str) -> None:
    async with asyncio.timeout(30):
        engine = EngineProcess(tiny, EngineOptions(backend=backend, kv_tokens=1024))
        await engine.start()
        stop = SamplingParameters(max_tokens=20, ignore_eos=True, stop=("e", "a", "i"))
        await asyncio.gather(*(text(engine, str(index), stop) for index in range(8)))
        before = processor_ticks(pid(engine))
        await asyncio.sleep(0.5)
        assert processor_ticks(pid(engine)) - before <= 2
        await engine.close()


def processor_ticks(process: int) -> int:
    """Processor time of a process, in hundredths of a second (proc_pid_stat(5))."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def test_a_model_that_sleeps_comes_back_when_it_is_woken_even_from_death(tiny: Path) -> None:
    engine = EngineProcess(tiny, EngineOptions("cuda", kv_tokens=64, speculation=False))
    await engine.start()
    sampling = SamplingParameters(temperature=0, max_tokens=1, ignore_eos=True)
    said = await text(engine, "a", sampling)
    await engine.sleep()
    with pytest.raises(RequestRefused, match="sleeps"):
        await text(engine, "b", sampling)
    await engine.wake()
    assert await text(engine, "c", sampling) == said
    await engine.sleep()
    dead = pid(engine)
    os.kill(dead, signal.SIGKILL)
    while engine.ready:
        await asyncio.sleep(0.01)
    assert pid(engine) == dead  # nothing takes a GPU's memory for it
    await engine.wake()
    assert pid(engine) != dead
    assert await text(engine, "d", sampling) == said
    await engine.close()


async def test_a_model_that_cannot_sleep_says_why_and_serves_on(engine: EngineProcess) -> None:
    with pytest.raises(RestRefused, match="only a model on one GPU can sleep"):
        await engine.sleep()
    assert await text(engine, "a", SamplingParameters(temperature=0, max_tokens=4))
