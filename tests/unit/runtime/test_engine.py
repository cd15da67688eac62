"""The engine as its users see it, over a tiny model on the reference backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.runtime.admission import encode
from headrace.runtime.backends.base import Batch
from headrace.runtime.engine import Completion, Engine, EngineOptions
from headrace.runtime.options import Limits
from headrace.runtime.request import (
    Objectives,
    Output,
    Request,
    RequestRefused,
    SamplingParameters,
    TokenLogprob,
)
from tests.fakes.backends import front

GREEDY = SamplingParameters(temperature=0, max_tokens=24, ignore_eos=True)
PROMPTS = ("Once upon a time", "x", "A rather longer prompt, to be chunked. " * 3, "Tell me: ")


@pytest.fixture
def engine(tiny: Path) -> Iterator[Engine]:
    options = EngineOptions(
        backend="reference", kv_tokens=1024, block_size=8, limits=Limits(16, 4, 8)
    )
    with Engine.load(tiny, options) as loaded:
        yield loaded


def drain(engine: Engine) -> dict[str, Completion]:
    """Step until nothing is left; what each request got."""
    news: dict[str, list[Output]] = {}
    while not engine.idle:
        for output in engine.step():
            news.setdefault(output.id, []).append(output)
    done = {}
    for id, outputs in news.items():
        finish = outputs[-1].finish
        assert finish is not None
        tokens = tuple(token for output in outputs for token in output.tokens)
        done[id] = Completion("".join(output.text for output in outputs), tokens, finish)
    return done


def test_requests_in_one_batch_get_what_they_get_alone(engine: Engine) -> None:
    alone = [engine.generate(prompt, GREEDY).tokens for prompt in PROMPTS]
    for index, prompt in enumerate(PROMPTS):
        engine.submit(Request(str(index), prompt, GREEDY))
    together = drain(engine)
    assert [together[str(index)].tokens for index in range(len(PROMPTS))] == alone
    assert engine.counters().kv_blocks_used == 0


def test_a_seed_gives_the_same_tokens_whatever_else_runs(engine: Engine) -> None:
    seeded = replace(GREEDY, temperature=1.0, seed=11)
    alone = engine.generate("Roll the dice", seeded)
    engine.submit(Request("other", "Something else", replace(GREEDY, temperature=1.0)))
    engine.submit(Request("same", "Roll the dice", seeded))
    assert drain(engine)["same"].tokens == alone.tokens
    assert engine.generate("Roll the dice", replace(seeded, seed=12)).tokens != alone.tokens


def test_a_preempted_request_goes_on_where_it_was(tiny: Path, engine: Engine) -> None:
    prompts = ("Once upon a time", "x", "Tell me: ")
    long = replace(GREEDY, max_tokens=80)
    alone = [engine.generate(prompt, long).tokens for prompt in prompts]
    tight = EngineOptions(backend="reference", kv_tokens=144, block_size=8, limits=Limits(16, 4))
    with Engine.load(tiny, tight) as small:
        for index, prompt in enumerate(prompts):
            small.submit(Request(str(index), prompt, long))
        together = drain(small)
        assert small.counters().preempted > 0
    assert [together[str(index)].tokens for index in range(len(prompts))] == alone


def test_usage_counts_prompt_and_answer(engine: Engine) -> None:
    finish = engine.generate("12345", GREEDY).finish
    assert (finish.prompt_tokens, finish.completion_tokens, finish.reason) == (5, 24, "length")


def test_a_stop_string_ends_the_text_before_itself(engine: Engine) -> None:
    whole = engine.generate("Once", GREEDY).text
    stop = whole[5:7]
    stopped = engine.generate("Once", replace(GREEDY, stop=(stop,)))
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.finish.reason == "stop"


def test_the_end_token_ends_the_answer_and_does_not_show(engine: Engine) -> None:
    whole = engine.generate("Once", GREEDY).tokens
    vocabulary = engine.checkpoint.vocabulary
    vocabulary.end_ids = frozenset({whole[3]})
    ended = engine.generate("Once", replace(GREEDY, ignore_eos=False))
    assert ended.tokens == whole[: whole.index(whole[3]) + 1]
    assert ended.finish.reason == "stop"


def test_a_prompt_that_cannot_fit_is_refused_with_both_numbers(engine: Engine) -> None:
    with pytest.raises(RequestRefused) as refused:
        engine.submit(Request("long", "y" * 600, GREEDY))
    assert refused.value.code == "context_too_long"
    assert refused.value.details == {"limit": 512, "tokens": 600}
    assert engine.idle


def test_the_context_ends_a_generation_that_nothing_else_does(engine: Engine) -> None:
    finish = engine.generate("z" * 500, replace(GREEDY, max_tokens=None)).finish
    assert (finish.reason, finish.completion_tokens) == ("length", 12)


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("max_tokens", SamplingParameters(max_tokens=0)),
        ("temperature", SamplingParameters(temperature=-1)),
        ("temperature", SamplingParameters(temperature=float("nan"))),
        ("top_p", SamplingParameters(top_p=0)),
        ("top_p", SamplingParameters(top_p=1.5)),
        ("top_k", SamplingParameters(top_k=-1)),
        ("stop", SamplingParameters(stop=("",))),
        ("min_p", SamplingParameters(min_p=1.5)),
        ("min_tokens", SamplingParameters(min_tokens=-1)),
        ("repetition_penalty", SamplingParameters(repetition_penalty=0)),
        ("presence_penalty", SamplingParameters(presence_penalty=float("nan"))),
        ("logit_bias", SamplingParameters(logit_bias=((999, 1.0),))),
        ("logprobs", SamplingParameters(logprobs=21)),
    ],
)
def test_a_parameter_without_meaning_is_refused_by_name(
    engine: Engine, field: str, asked: SamplingParameters
) -> None:
    with pytest.raises(RequestRefused, match=field):
        engine.submit(Request("odd", "Hi", asked))


@pytest.mark.parametrize("prompt", ["", [], [5000], [-1], ["a"]])
def test_a_prompt_without_meaning_is_refused(engine: Engine, prompt: list[int]) -> None:
    with pytest.raises(RequestRefused):
        engine.submit(Request("odd", prompt, GREEDY))


def test_a_full_queue_refuses_at_once(engine: Engine) -> None:
    for index in range(8):
        engine.submit(Request(str(index), "Hi", GREEDY))
    with pytest.raises(RequestRefused) as refused:
        engine.submit(Request("late", "Hi", GREEDY))
    assert refused.value.code == "busy"
    assert len(drain(engine)) == 8


def test_a_cancelled_request_frees_its_blocks_at_once(engine: Engine) -> None:
    engine.submit(Request("gone", "Hi", GREEDY))
    engine.submit(Request("stays", "Hi", GREEDY))
    engine.step()
    assert engine.cancel("gone")
    assert not engine.cancel("gone")
    assert engine.counters().running == 1
    assert drain(engine).keys() == {"stays"}
    assert engine.counters().kv_blocks_used == 0


def test_closing_a_stream_cancels_its_request(engine: Engine) -> None:
    stream = engine.stream("Hi", GREEDY)
    next(stream)
    assert not engine.idle
    stream.close()  # type: ignore[attr-defined]
    assert engine.idle
    assert engine.counters().cancelled == 1


@pytest.mark.parametrize("later", [False, True])
def test_a_step_that_fails_ends_only_the_request_that_caused_it(
    engine: Engine, later: bool
) -> None:
    """The fault is injected at the contract: a backend that fails on one token."""
    alone = [engine.generate(prompt, GREEDY).tokens for prompt in ("Hi", "Once")]

    def poisoned(batch: Batch) -> None:
        if 7 in batch.tokens:
            raise MemoryError(f"{len(batch.tokens)} rows")

    front(engine, fault=poisoned, later=later)
    engine.submit(Request("one", "Hi", GREEDY))
    engine.step()
    engine.submit(Request("poison", [5, 6, 7, 8], GREEDY))
    engine.submit(Request("two", "Once", GREEDY))
    ended = drain(engine)
    assert ended["poison"].finish.reason == "error"
    assert [ended["one"].tokens, ended["two"].tokens] == [alone[0][1:], alone[1]]
    assert engine.counters().kv_blocks_used == 0


def test_messages_go_through_the_chat_template(engine: Engine) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert encode(engine.checkpoint, messages) == encode(engine.checkpoint, text)


def test_a_repeated_prefix_is_not_computed_again_and_changes_nothing(engine: Engine) -> None:
    prompt = "The same long beginning of everything that is asked here. "
    first = engine.generate(prompt + "And this?", GREEDY)
    again = engine.generate(prompt + "And this?", GREEDY)
    other = engine.generate(prompt + "Or that?", GREEDY)
    assert first.finish.cached_tokens == 0
    assert again.finish.cached_tokens == 64
    assert other.finish.cached_tokens == 56
    assert again.tokens == first.tokens


def test_an_answer_is_a_prefix_of_the_next_turn(engine: Engine) -> None:
    first = engine.generate("Turn one, a few words long.", GREEDY)
    tokens = [*encode(engine.checkpoint, "Turn one, a few words long."), *first.tokens]
    second = engine.generate([*tokens, 65, 66], GREEDY)
    assert second.finish.cached_tokens == 48


def test_tenants_do_not_share_prefixes(engine: Engine) -> None:
    prompt = "A secret that is long enough to fill some blocks."
    for tenant, cached in (("one", 0), ("two", 0), ("one", 48)):
        engine.submit(Request("x", prompt, GREEDY, tenant=tenant))
        assert drain(engine)["x"].finish.cached_tokens == cached


def test_logprobs_are_those_of_the_chosen_tokens_and_their_rivals(engine: Engine) -> None:
    sampling = replace(GREEDY, max_tokens=3, logprobs=2)
    engine.submit(Request("x", "Hi", sampling))
    outputs = []
    while not engine.idle:
        outputs += engine.step()
    for output in outputs:
        (found,) = output.logprobs
        assert found.token == output.tokens[0] == found.ranked[0].token
        assert found.logprob == found.ranked[0].logprob
        assert (found.logprob or 0) > (found.ranked[1].logprob or 0)
        assert found.bytes == engine.checkpoint.vocabulary.label(found.token)


def test_prompt_logprobs_are_what_generation_would_have_said(engine: Engine) -> None:
    answer = engine.generate("Hello", replace(GREEDY, max_tokens=20, logprobs=0))
    engine.submit(Request("a", "Hello", replace(GREEDY, max_tokens=20, logprobs=0)))
    generated = [one.logprob for one in collected(engine, "logprobs")]
    prompt = [*encode(engine.checkpoint, "Hello"), *answer.tokens]
    engine.submit(Request("b", prompt, replace(GREEDY, max_tokens=1, prompt_logprobs=0)))
    scored = collected(engine, "prompt_logprobs")
    assert [one.token for one in scored] == prompt
    assert scored[0].logprob is None
    np.testing.assert_allclose(
        [one.logprob or 0 for one in scored[5:]], [one or 0 for one in generated], atol=1e-4
    )


def collected(engine: Engine, field: str) -> list[TokenLogprob]:
    found: list[TokenLogprob] = []
    while not engine.idle:
        for output in engine.step():
            found += getattr(output, field)
    return found


def test_a_bias_makes_a_token_certain_or_impossible(engine: Engine) -> None:
    free = engine.generate("Hi", GREEDY).tokens
    banned = engine.generate("Hi", replace(GREEDY, logit_bias=((free[0], float("-inf")),)))
    assert free[0] not in banned.tokens
    forced = engine.generate("Hi", replace(GREEDY, logit_bias=((65, 100.0),)))
    assert forced.tokens == (65,) * 24


def test_penalties_make_a_repeating_model_vary(engine: Engine) -> None:
    def distinct(asked: SamplingParameters) -> int:
        return len(set(engine.generate("Hi", asked).tokens))

    stuck = replace(GREEDY, logit_bias=((65, 5.0),))
    assert distinct(stuck) == 1
    assert distinct(replace(stuck, presence_penalty=6.0)) > 1
    assert distinct(replace(stuck, frequency_penalty=2.0)) > 1
    assert distinct(replace(GREEDY, repetition_penalty=1000.0)) > distinct(GREEDY)


def test_min_tokens_hold_the_end_back(engine: Engine) -> None:
    whole = engine.generate("Once", GREEDY).tokens
    stop = replace(GREEDY, stop_tokens=(whole[0],))
    assert engine.generate("Once", stop).finish.completion_tokens == 1
    late = engine.generate("Once", replace(stop, min_tokens=5))
    assert late.finish.completion_tokens > 5
    assert whole[0] not in late.tokens[:5]


def test_a_request_whose_deadline_cannot_be_met_ends_as_late_without_running(
    engine: Engine,
) -> None:
    engine.generate("z" * 400, GREEDY)  # so that the engine knows what a prompt costs
    engine.submit(Request("late", "y" * 400, GREEDY, objectives=Objectives(ttft=1e-4)))
    engine.submit(Request("fine", "Hi", GREEDY, objectives=Objectives(ttft=60.0)))
    ended = drain(engine)
    assert ended["late"].finish.reason == "late"
    assert ended["late"].tokens == ()
    assert ended["fine"].finish.reason == "length"


@pytest.mark.parametrize("messages", [True, False])
def test_a_text_that_could_never_fit_is_refused_without_encoding_it(
    engine: Engine, messages: bool
) -> None:
    words = "x" * 50_000_000
    asked: Any = [{"role": "user", "content": words}] if messages else words
    with pytest.raises(RequestRefused) as refused:
        engine.submit(Request("long", asked, GREEDY))
    assert refused.value.code == "context_too_long"
    assert refused.value.details["tokens"] > refused.value.details["limit"]
