"""Drafts: the same text in fewer steps, and none where they do not pay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.runtime.backends.base import Batch, KVLayout, Sampled
from headrace.runtime.backends.reference import load
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.models.assembly import decoder_program
from headrace.runtime.models.checkpoint import load_checkpoint
from headrace.runtime.request import Request, SamplingParameters
from headrace.runtime.scheduler import Limits
from headrace.runtime.speculation import Past

REPETITIVE = "one two three one two three one two three one two three "


def engine_with(tiny: Path, seconds: Callable[[int], float], *, speculation: bool = True) -> Engine:
    """An engine whose clock moves by `seconds(rows)` a step and by nothing else."""
    checkpoint = load_checkpoint(tiny)
    kv = KVLayout(64, 8)
    backend = load(decoder_program(checkpoint.architecture), checkpoint.weights, kv, 1)
    now = 0.0
    run = backend.run

    def timed(batch: Batch) -> Sampled:
        nonlocal now
        now += seconds(len(batch.tokens))
        return run(batch)

    backend.run = timed  # type: ignore[method-assign]
    options = EngineOptions(limits=Limits(64, 4), speculation=speculation)
    return Engine(checkpoint, backend, options, lambda: now)


def texts(engine: Engine, prompts: list[str], sampling: SamplingParameters) -> dict[str, str]:
    for index, prompt in enumerate(prompts):
        engine.submit(Request(str(index), prompt, sampling))
    shown: dict[str, str] = {}
    while not engine.idle:
        for output in engine.step():
            shown[output.id] = shown.get(output.id, "") + output.text
    assert engine.counters().kv_blocks_used == 0
    return shown


def free(rows: int) -> float:
    """A machine on which more rows cost nothing."""
    return 1.0


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.sampled_from([REPETITIVE, "abcabcabcabc", "x"]), min_size=1, max_size=3),
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 1000),
    stop=st.sampled_from([(), ("a",), ("ee",)]),
)
def test_drafts_never_change_the_text(
    tiny: Path, prompts: list[str], temperature: float, seed: int, stop: tuple[str, ...]
) -> None:
    sampling = SamplingParameters(
        max_tokens=40, temperature=temperature, seed=seed, ignore_eos=True, stop=stop
    )
    plain = texts(engine_with(tiny, free, speculation=False), prompts, sampling)
    assert texts(engine_with(tiny, free), prompts, sampling) == plain


def test_a_repeating_answer_takes_fewer_steps(tiny: Path) -> None:
    """A bias towards one token would forbid drafts, so the model's own greedy loop is used."""
    sampling = SamplingParameters(max_tokens=120, temperature=0, ignore_eos=True)
    engine = engine_with(tiny, free)
    texts(engine, [REPETITIVE], sampling)
    counters = engine.counters()
    assert counters.accepted > 20
    assert counters.steps == 120 - counters.accepted


def test_no_drafts_are_made_where_rows_cost_their_share(tiny: Path) -> None:
    sampling = SamplingParameters(max_tokens=120, temperature=0, ignore_eos=True)
    engine = engine_with(tiny, float)
    texts(engine, [REPETITIVE], sampling)
    assert engine.counters().drafted <= 36  # what it took to learn the price


def test_no_drafts_are_made_while_others_wait(tiny: Path) -> None:
    sampling = SamplingParameters(max_tokens=60, temperature=0, ignore_eos=True)
    engine = engine_with(tiny, free)
    for index in range(6):  # four run
        engine.submit(Request(str(index), REPETITIVE, sampling))
    while engine.counters().waiting:
        engine.step()
        assert engine.counters().drafted == 0 or not engine.counters().waiting


@pytest.mark.parametrize(
    ("tokens", "guess"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], (4, 5, 1, 2)),
        ([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], (5, 1, 2, 3)),
        ([1, 2, 3, 4, 5, 6], ()),
        ([1, 2], ()),
        ([7, 7, 7, 7, 7], (7,)),
    ],
)
def test_a_guess_is_what_followed_last_time(tokens: list[int], guess: tuple[int, ...]) -> None:
    assert Past().guess(tokens, 4) == guess
