"""Host and backend at the same time: nobody can tell by what they get."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from headrace.runtime.backends.base import Batch
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.options import Limits
from headrace.runtime.request import Grammar, Output, Request, SamplingParameters, TokenLogprob
from tests.fakes.adapter import write_adapter
from tests.fakes.backends import front
from tests.fakes.model import write_tiny_gguf

BASE = SamplingParameters(max_tokens=20, temperature=1.0, seed=1, ignore_eos=True)
GREEDY = replace(BASE, temperature=0)
LATER = ("r2", "r5", "r9")  # these come while others run
LEAVES = "r6"
PROMPT = "A prompt that is long enough to be cut, and to share blocks. "
REQUESTS = [
    Request("r0", "x", replace(BASE, logprobs=2)),
    Request("r1", PROMPT + "One", replace(GREEDY, prompt_logprobs=1)),
    Request("r2", PROMPT + "Two", replace(BASE, seed=2, frequency_penalty=1.0, min_tokens=4)),
    Request("r3", "Stop at a string", replace(BASE, stop=("9", "e"))),
    Request("r4", "Stop at a token", replace(BASE, stop_tokens=tuple(range(60, 160)))),
    Request("r5", "abcabcabcabcabcabc", replace(GREEDY, max_tokens=40)),
    Request("r6", "Leaves", replace(BASE, max_tokens=60)),
    Request("r7", "Held", replace(BASE, max_tokens=30), grammar=Grammar("regex", "[a-c]{3,12}")),
    Request("r8", "Held", replace(BASE, seed=7, logprobs=0), grammar=Grammar("regex", "(ab)+z")),
    Request("r9", "One of n", replace(BASE, seed=8, max_tokens=1)),
    Request("r10", "One of n", replace(BASE, seed=9, logit_bias=((65, 3.0),))),
    Request("r11", "Adapted", replace(BASE, seed=10), adapter="one"),
    Request("r12", "Adapted", replace(GREEDY, repetition_penalty=1.3), adapter="one"),
]


@dataclass
class Heard:
    """All that the caller of one request hears, but for how long it took."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    end: tuple[str, int, int] | None = None

    def hear(self, output: Output) -> None:
        assert self.end is None, "nothing comes after the end"
        self.text += output.text
        self.tokens += output.tokens
        self.logprobs += output.logprobs
        self.prompt_logprobs += output.prompt_logprobs
        if output.finish is not None:
            finish = output.finish
            self.end = (finish.reason, finish.prompt_tokens, finish.completion_tokens)


def played(engine: Engine, requests: list[Request] = REQUESTS) -> dict[str, Heard]:
    """What each request hears: some come later than others, one leaves."""
    heard = {request.id: Heard() for request in requests}
    for request in requests:
        if request.id not in LATER:
            engine.submit(request)
    steps = 0

    def listen() -> None:
        for request in requests:
            if steps == 5 and request.id in LATER:
                engine.submit(request)
        if len(heard[LEAVES].tokens) > 6:
            engine.cancel(LEAVES)

    while not engine.idle:
        for output in engine.step(listen):
            heard[output.id].hear(output)
        steps += 1
    counters = engine.counters()
    assert (counters.running, counters.waiting, counters.kv_blocks_used) == (0, 0, 0)
    return heard


def same(one: Mapping[str, Heard], other: Mapping[str, Heard]) -> bool:
    """Whether two plays were heard alike; who leaves hears the same for as long."""
    stays = all(one[id] == other[id] for id in one if id != LEAVES)
    return stays and all(
        a == b for a, b in zip(one[LEAVES].tokens, other[LEAVES].tokens, strict=False)
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantised: each row is the same to the last bit whatever is beside it."""
    return write_tiny_gguf(tmp_path_factory.mktemp("overlap") / "tiny.gguf", format="Q4_1")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter"), seed=3)


def loaded(
    model: Path, adapter: Path | None = None, *, queues: bool = False, **changes: object
) -> Engine:
    """An engine on the native backend. `queues`: one that begins steps before it need to."""
    options = {"backend": "cpu", "threads": 2, "kv_tokens": 1024, "block_size": 8}
    engine = Engine.load(model, EngineOptions(**{**options, **changes}))  # type: ignore[arg-type]
    if adapter is not None:
        engine.load_adapter("one", adapter)
    if queues:
        front(engine, queues=True)
    return engine


@pytest.fixture(scope="module")
def expected(model: Path, adapter: Path) -> dict[str, Heard]:
    """What a loop gives in which host and backend take turns, without drafts."""
    with loaded(model, adapter, overlap=False, speculation=False) as engine:
        return played(engine)


@pytest.mark.parametrize("speculation", [False, True])
@pytest.mark.parametrize("kv_tokens", [1024, 120])
@pytest.mark.parametrize(("overlap", "queues"), [(False, False), (True, False), (True, True)])
def test_everybody_hears_what_a_simple_loop_would_have_said(
    model: Path,
    adapter: Path,
    expected: dict[str, Heard],
    overlap: bool,
    queues: bool,
    kv_tokens: int,
    speculation: bool,
) -> None:
    with loaded(
        model,
        adapter,
        queues=queues,
        overlap=overlap,
        limits=Limits(24, 6),
        kv_tokens=kv_tokens,
        speculation=speculation,
    ) as engine:
        assert same(played(engine), expected)
        if kv_tokens < 1024:
            assert engine.counters().preempted > 0


@pytest.mark.parametrize("queues", [False, True])
def test_drafts_are_the_same_with_steps_in_flight(
    model: Path, adapter: Path, expected: dict[str, Heard], queues: bool
) -> None:
    """Where further rows cost nothing, so that there are many drafts."""
    with loaded(model, adapter, limits=Limits(64, 16)) as engine:
        front(engine, seconds=lambda rows: 1.0, queues=queues)
        assert same(played(engine), expected)
        assert engine.counters().accepted > 0


def poisoned(batch: Batch) -> None:
    """A fault that one request's tokens bring about; 7 is nobody's but its."""
    if 7 in batch.tokens:
        raise MemoryError("no memory")


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("queues", [False, True])
def test_a_step_that_fails_ends_its_request_alone_whatever_was_planned_after_it(
    model: Path, adapter: Path, expected: dict[str, Heard], queues: bool, later: bool
) -> None:
    limits = Limits(24, 14)
    with loaded(model, adapter, limits=limits, speculation=False) as engine:
        front(engine, fault=poisoned, later=later, queues=queues)
        poison = Request("poison", [65, 66], replace(BASE, logit_bias=((7, 100.0),)))
        heard = played(engine, [*REQUESTS, poison])
        ended = heard.pop("poison").end
        assert ended is not None
        assert ended[0] == "error"
        assert same(heard, expected)


@pytest.mark.parametrize("queues", [False, True])
def test_a_request_that_is_cancelled_while_its_step_runs_is_gone_at_once(
    model: Path, queues: bool
) -> None:
    with loaded(model, queues=queues, limits=Limits(24, 6), speculation=False) as engine:
        alone = engine.generate("Stays", GREEDY).tokens
        engine.submit(Request("gone", "Gone", GREEDY))
        engine.submit(Request("stays", "Stays", GREEDY))
        tokens = [token for _ in range(3) for one in engine.step() for token in one.tokens]
        assert engine.cancel("gone")
        engine.submit(Request("gone", "Stays", GREEDY))  # the name is free, and so are the blocks
        heard = {"gone": Heard(), "stays": Heard()}
        while not engine.idle:
            for output in engine.step():
                heard[output.id].hear(output)
        assert tuple(heard["gone"].tokens) == alone
        assert tuple(heard["stays"].tokens) == alone[-len(heard["stays"].tokens) :]
        assert tokens
        assert engine.counters().kv_blocks_used == 0


@pytest.mark.parametrize("queues", [False, True])
def test_an_engine_closes_with_a_step_under_way(model: Path, queues: bool) -> None:
    engine = loaded(model, queues=queues, limits=Limits(24, 6), speculation=False)
    engine.submit(Request("open", "Held", BASE, grammar=Grammar("regex", "[a-c]{60}")))
    for _ in range(4):
        engine.step()
    assert engine.loop.flight is not None
    engine.close()


@pytest.mark.parametrize("queues", [False, True])
def test_a_request_that_comes_while_a_step_runs_is_in_the_next_that_can_take_it(
    model: Path, queues: bool
) -> None:
    with loaded(model, queues=queues, limits=Limits(24, 6), speculation=False) as engine:
        engine.submit(Request("first", "First", GREEDY))
        engine.step()
        second = Request("second", "Second", GREEDY)
        came = [{one.id for one in engine.step(lambda: engine.submit(second))}]
        came += [{one.id for one in engine.step()} for _ in range(2)]
        assert came == [{"first"}, {"first"} if queues else {"first", "second"}, *came[2:]]
        assert came[2] == {"first", "second"}


@pytest.mark.parametrize("queues", [False, True])
def test_an_engine_whose_last_request_ended_uses_no_processor_time(
    model: Path, queues: bool
) -> None:
    """Though a row of it may have been in a step that began before that was seen."""
    with loaded(model, queues=queues, limits=Limits(24, 6), speculation=False) as engine:
        text = engine.generate("First", GREEDY).text
        ended = engine.generate("First", replace(GREEDY, stop=(text[5:7],)))
        assert ended.finish.reason == "stop"
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.05
