"""Batch invariance: a request's tokens and log-probabilities, to the last bit, on the real model.

The native backend adds up each row on its own and in a fixed order: this is how it always runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.options import Limits
from headrace.runtime.request import Request, SamplingParameters

PROMPT = "The history of the water wheel begins in antiquity. It was used for milling grain, and "
ASKED = SamplingParameters(max_tokens=24, temperature=0.8, seed=5, ignore_eos=True, logprobs=0)
OTHERS = SamplingParameters(max_tokens=40, temperature=1.0, seed=9, ignore_eos=True)

Answer = tuple[tuple[int, ...], tuple[float | None, ...]]


def answer(engine: Engine, others: int = 0, head_start: int = 0) -> Answer:
    """Tokens and log-probabilities of PROMPT, asked while `others` run or are about to."""
    for index in range(others):
        prompt = f"{index} unlike the rest: " * (index + 1)
        engine.submit(Request(f"other {index}", prompt, OTHERS))
    for _ in range(head_start):
        engine.step()
    engine.submit(Request("asked", PROMPT * 3, ASKED))
    tokens: list[int] = []
    logprobs: list[float | None] = []
    while "asked" in engine.sequences:
        for output in engine.step():
            if output.id == "asked":
                tokens += output.tokens
                logprobs += [one.logprob for one in output.logprobs]
    while not engine.idle:
        engine.step()
    return tuple(tokens), tuple(logprobs)


@pytest.fixture(scope="module")
def load(smollm2: Path) -> Iterator[Callable[..., Engine]]:
    engines = []

    def loaded(**options: object) -> Engine:
        engines.append(Engine.load(smollm2, EngineOptions(backend="cpu", **options)))  # type: ignore[arg-type]
        return engines[-1]

    yield loaded
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def alone(load: Callable[..., Engine]) -> Answer:
    return answer(load(speculation=False, share_prefixes=False))


def test_beside_others(load: Callable[..., Engine], alone: Answer) -> None:
    engine = load()
    assert answer(engine, others=3) == alone
    assert answer(engine, others=15, head_start=4) == alone


def test_with_a_prefix_that_another_computed(load: Callable[..., Engine], alone: Answer) -> None:
    engine = load()
    answer(engine)
    assert answer(engine) == alone
    assert engine.counters().cached_tokens > 0


def test_with_its_prompt_in_chunks(load: Callable[..., Engine], alone: Answer) -> None:
    for chunk in (16, 17, 31):
        engine = load(limits=Limits(batch_tokens=chunk, sequences=8), share_prefixes=False)
        assert answer(engine) == alone


def test_after_a_preemption(load: Callable[..., Engine], alone: Answer) -> None:
    engine = load(kv_tokens=256, share_prefixes=False)
    assert answer(engine, others=6, head_start=2) == alone
    assert engine.counters().preempted > 0


@pytest.mark.parametrize("chunk", [512, 17])
def test_of_float_weights(tiny: Path, chunk: int) -> None:
    options = EngineOptions(backend="cpu", share_prefixes=False)
    limits = Limits(batch_tokens=chunk, sequences=8)
    with Engine.load(tiny, options) as engine:
        alone = answer(engine)
    with Engine.load(tiny, replace(options, limits=limits)) as engine:
        assert answer(engine, others=7, head_start=3) == alone
