"""One model in the processes of two ranks: the same answers, and an end that leaves nobody."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.options import Limits
from headrace.runtime.process import EngineDied, EngineFailed, EngineProcess
from headrace.runtime.request import Request, SamplingParameters
from tests.fakes.adapter import write_adapter
from tests.fakes.model import write_tiny_gguf

OPTIONS = EngineOptions(
    backend="reference",
    kv_tokens=512,
    tensor_parallel=2,
    limits=Limits(batch_tokens=8, sequences=4),
)
ASKED = [
    Request("greedy", "once upon", SamplingParameters(max_tokens=6, temperature=0)),
    Request("sampled", "a time there", SamplingParameters(max_tokens=5, top_p=0.9, seed=3)),
    Request("both", "was", SamplingParameters(max_tokens=4, top_k=9, seed=4, logprobs=2)),
]


def tokens(engine: Engine, requests: list[Request]) -> dict[str, list[int]]:
    """What each request gets, all together."""
    found: dict[str, list[int]] = {request.id: [] for request in requests}
    for request in requests:
        engine.submit(request)
    while not engine.idle:
        for output in engine.step():
            found[output.id] += output.tokens
    return found


def test_ranks_give_the_tokens_of_one_process_with_adapters_too(tiny: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", 1)
    asked = [*ASKED, replace(ASKED[0], id="adapted", adapter="one")]
    found = []
    for size in (2, 1):
        with Engine.load(tiny, replace(OPTIONS, tensor_parallel=size)) as engine:
            engine.load_adapter("one", adapter)
            found.append(tokens(engine, asked))
            engine.drop_adapter("one")
            found.append(tokens(engine, ASKED))
    assert found[:2] == found[2:]
    assert found[0]["adapted"] != found[0]["greedy"]


def test_steps_that_begin_before_the_last_tokens_are_known_reach_every_rank(
    tmp_path: Path,
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", format="Q4_1")
    options = replace(OPTIONS, kv_dtype="int8", speculation=False)
    few = [
        Request("greedy", "ab", SamplingParameters(max_tokens=4, temperature=0)),
        Request("sampled", "c", SamplingParameters(max_tokens=4, seed=3)),
    ]
    with Engine.load(path, replace(options, backend="cuda")) as engine:
        assert engine.backend.queues
        assert "in 2 parts" in engine.layout.because
        several = tokens(engine, few)
    with Engine.load(path, replace(options, tensor_parallel=1)) as engine:
        assert several == tokens(engine, few)


def children(pid: int) -> list[int]:
    """Processes that a process started from its first thread."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended, and nobody waited for, does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


async def test_a_rank_that_is_killed_ends_all_and_they_start_again(tiny: Path) -> None:
    engine = EngineProcess(tiny, OPTIONS)
    try:
        await engine.start()
        assert engine.process is not None
        stream = engine.generate(Request("a", "Hi", SamplingParameters(ignore_eos=True)))
        await anext(stream)
        (rank,) = children(engine.process.pid)
        os.kill(rank, signal.SIGKILL)
        with pytest.raises(EngineDied):
            async for _ in stream:
                pass
        async with asyncio.timeout(60):
            while not engine.ready:
                await asyncio.sleep(0.01)
        few = SamplingParameters(max_tokens=3, ignore_eos=True)
        assert [one async for one in engine.generate(Request("b", "Hi", few))][-1].finish
        assert engine.restarts == 1
        (rank,) = children(engine.process.pid)
        os.kill(engine.process.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while runs(rank):
                await asyncio.sleep(0.01)
    finally:
        await engine.close()


async def test_a_model_that_cannot_be_cut_is_refused_by_its_numbers(tiny: Path) -> None:
    with pytest.raises(EngineFailed, match="4 heads over 2 KV heads cannot be cut into 3 parts"):
        await EngineProcess(tiny, replace(OPTIONS, tensor_parallel=3)).start()


def test_backends_of_one_process_say_what_several_need(tiny: Path) -> None:
    with pytest.raises(ValueError, match="needs backend cuda and 2 NVIDIA GPUs; backend cpu"):
        Engine.load(tiny, replace(OPTIONS, backend="cpu"))
