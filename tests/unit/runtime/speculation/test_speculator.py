"""Drafts: the same text in fewer steps, and none where they do not pay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from headrace.runtime.backends.base import KVLayout
from headrace.runtime.backends.reference import load
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.models.assembly import decoder_program
from headrace.runtime.models.checkpoint import load_checkpoint
from headrace.runtime.options import Limits
from headrace.runtime.request import Grammar, Request, SamplingParameters
from headrace.runtime.speculation.lookup import Lookup
from tests.fakes.backends import Clock, Fronted

REPETITIVE = "one two three one two three one two three one two three "


def engine_with(tiny: Path, seconds: Callable[[int], float], *, speculation: bool = True) -> Engine:
    """An engine whose clock moves by `seconds(rows)` a step and by nothing else."""
    checkpoint = load_checkpoint(tiny)
    kv = KVLayout(64, 8)
    inner = load(decoder_program(checkpoint.architecture), checkpoint.weights, kv, 1)
    clock = Clock()
    backend = Fronted(inner, clock, seconds)
    options = EngineOptions(limits=Limits(64, 4), speculation=speculation)
    return Engine(checkpoint, backend, options, clock)


def texts(
    engine: Engine,
    prompts: list[str],
    sampling: SamplingParameters,
    grammar: Grammar | None = None,
) -> dict[str, str]:
    for index, prompt in enumerate(prompts):
        engine.submit(Request(str(index), prompt, sampling, grammar=grammar))
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
    top_p=st.sampled_from([1.0, 0.5]),
    seed=st.integers(0, 1000),
    stop=st.sampled_from([(), ("a",), ("ee",)]),
    penalty=st.sampled_from([0.0, 0.0, 0.3]),
    grammar=st.sampled_from([None, None, Grammar("regex", "([a-c]{3} ?){4,30}")]),
)
def test_drafts_never_change_the_text(
    tiny: Path,
    prompts: list[str],
    temperature: float,
    top_p: float,
    seed: int,
    stop: tuple[str, ...],
    penalty: float,
    grammar: Grammar | None,
) -> None:
    sampling = SamplingParameters(
        max_tokens=40,
        min_tokens=5 * (seed % 2),
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        ignore_eos=grammar is None,
        stop=stop,
        frequency_penalty=penalty,
        repetition_penalty=1 + penalty,
    )
    plain = texts(engine_with(tiny, free, speculation=False), prompts, sampling, grammar)
    drafting = engine_with(tiny, free)
    assert texts(drafting, prompts, sampling, grammar) == plain
    assert texts(drafting, prompts, sampling, grammar) == plain  # from the outputs before


def test_an_answer_like_one_before_takes_fewer_steps(tiny: Path) -> None:
    """Sampled at a temperature at which nothing in it repeats; also under a grammar."""
    sampling = SamplingParameters(
        max_tokens=60, temperature=1.0, seed=3, frequency_penalty=0.1, ignore_eos=True
    )
    for grammar in (None, Grammar("regex", "[a-z ]{100}")):
        engine = engine_with(tiny, free)
        first = texts(engine, ["x"], sampling, grammar)
        before = engine.counters()
        assert texts(engine, ["x"], sampling, grammar) == first
        after = engine.counters()
        assert after.steps - before.steps < 30
        assert after.accepted - before.accepted > 30


def test_the_distribution_of_sampled_tokens_is_that_without_drafts(tiny: Path) -> None:
    """Two sets of seeds, one of them drafted for: chi-square over what was generated."""
    sampling = SamplingParameters(max_tokens=4, temperature=1.0)
    letters = Grammar("regex", "[a-c]{5}")  # so that drafts are often right, and often wrong
    counts: list[Counter[str]] = []
    for speculation in (False, True):
        engine, found = engine_with(tiny, free, speculation=speculation), Counter[str]()
        for first in range(0, 800, 4):
            for row in range(4):
                seeded = replace(sampling, seed=10_000 * speculation + first + row)
                engine.submit(Request(str(row), "abcabcab", seeded, grammar=letters))
            words = ["", "", "", ""]
            while not engine.idle:
                for output in engine.step():
                    words[int(output.id)] += output.text
            found.update(words)
        counts.append(found)
    assert 200 < engine.counters().accepted < engine.counters().drafted - 200
    common = [word for word in counts[0] | counts[1] if counts[0][word] + counts[1][word] >= 16]
    table = [
        [*(one[word] for word in common), 800 - sum(one[word] for word in common)] for one in counts
    ]
    assert len(common) > 15
    assert chi2_contingency(table).pvalue > 0.001


def test_what_one_tenant_got_is_never_drafted_for_another(tiny: Path) -> None:
    sampling = SamplingParameters(max_tokens=60, temperature=1.0, seed=3, ignore_eos=True)
    engine = engine_with(tiny, free)
    steps = []
    for tenant in ("one", "two", "one"):
        before = engine.counters().steps
        engine.submit(Request("x", "x", sampling, tenant=tenant))
        while not engine.idle:
            engine.step()
        steps.append(engine.counters().steps - before)
    assert steps[1] == steps[0]
    assert steps[2] < steps[0] / 2


def test_a_repeating_answer_takes_fewer_steps(tiny: Path) -> None:
    """The model's own greedy loop."""
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
    draft = Lookup().guess(tokens, 4)
    assert (draft.tokens if draft else ()) == guess
