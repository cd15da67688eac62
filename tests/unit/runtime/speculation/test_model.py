"""A draft model: the same text, whoever drafts, whatever happens to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.runtime.backends.base import Batch, KVLayout, Sampled
from headrace.runtime.backends.reference import load
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.models.assembly import decoder_program
from headrace.runtime.models.checkpoint import load_checkpoint
from headrace.runtime.options import Limits
from headrace.runtime.request import Grammar, Objectives, Request, SamplingParameters
from headrace.runtime.speculation.model import DraftModel, load_draft_model
from tests.fakes.backends import Clock, Fronted
from tests.fakes.batches import new_sequence
from tests.fakes.model import write_tiny_gguf

PROMPTS = ("Once upon a time", "x", "A rather longer prompt, to be chunked. " * 3, "Tell me: ")
SAMPLED = SamplingParameters(max_tokens=30, temperature=1.0, seed=4, ignore_eos=True)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same vocabulary that rarely agrees."""
    return write_tiny_gguf(tmp_path_factory.mktemp("other") / "other.gguf", seed=1)


def engine_with(path: Path, draft: Path | None, *, kv: int = 512, draft_kv: int = 512) -> Engine:
    """An engine on which a step takes 1 s, and one of the draft model 0.01 s."""
    clock = Clock()
    checkpoint = load_checkpoint(path)
    program = decoder_program(checkpoint.architecture)
    inner = load(program, checkpoint.weights, KVLayout(kv // 8, 8), 1)
    backend = Fronted(inner, clock, lambda rows: 1.0)
    model = None
    if draft is not None:
        model = load_draft_model(draft, checkpoint, KVLayout(draft_kv // 8, 8), "reference", 1)
        model.backend = Fronted(model.backend, clock, lambda rows: 0.01)
        model.clock = clock
    options = EngineOptions(limits=Limits(64, 4), speculation=draft is not None)
    return Engine(checkpoint, backend, options, clock, model)


def answers(
    engine: Engine, sampling: SamplingParameters = SAMPLED, grammar: Grammar | None = None
) -> dict[str, tuple[int, ...]]:
    """The tokens of all prompts."""
    for index, prompt in enumerate(PROMPTS):
        objectives = Objectives(priority=index % 2)
        engine.submit(Request(str(index), prompt, sampling, objectives=objectives, grammar=grammar))
    found: dict[str, tuple[int, ...]] = {}
    while not engine.idle:
        for output in engine.step():
            found[output.id] = found.get(output.id, ()) + output.tokens
    assert engine.counters().kv_blocks_used == 0
    return found


def model_of(engine: Engine) -> DraftModel:
    assert engine.speculator is not None
    assert engine.speculator.model is not None
    return engine.speculator.model


@pytest.mark.parametrize("grammar", [None, Grammar("regex", "[a-z ]{60}")])
@pytest.mark.parametrize(
    "sampling",
    [
        SAMPLED,
        SamplingParameters(max_tokens=30, temperature=0, ignore_eos=True),
        SamplingParameters(max_tokens=30, top_p=0.7, frequency_penalty=0.5, seed=2, stop=("e",)),
    ],
)
def test_a_draft_model_never_changes_the_text(
    tiny: Path, other: Path, sampling: SamplingParameters, grammar: Grammar | None
) -> None:
    plain = answers(engine_with(tiny, None), sampling, grammar)
    for draft in (tiny, other):
        assert answers(engine_with(tiny, draft), sampling, grammar) == plain


def test_a_model_that_agrees_saves_steps_and_one_that_does_not_is_left_alone(
    tiny: Path, other: Path
) -> None:
    plain, same, rival = (engine_with(tiny, draft) for draft in (None, tiny, other))
    assert answers(plain) == answers(same) == answers(rival)
    counters = same.counters()
    assert counters.steps < 0.6 * plain.counters().steps
    assert counters.accepted > 0.9 * counters.drafted  # the sampler draws with the same numbers
    assert rival.clock() < 1.2 * plain.clock()


def test_preemption_and_a_small_memory_of_its_own_change_nothing(tiny: Path) -> None:
    plain = answers(engine_with(tiny, None))
    tight = engine_with(tiny, tiny, kv=184, draft_kv=96)
    assert answers(tight) == plain
    assert tight.counters().preempted > 0
    assert tight.counters().accepted > 0


def test_all_of_its_memory_is_given_back(tiny: Path) -> None:
    engine = engine_with(tiny, tiny)
    for prompt in PROMPTS:
        engine.submit(Request(prompt, prompt, SAMPLED))
    for _ in range(8):
        engine.step()
    assert model_of(engine).pool.used > 0
    for prompt in PROMPTS:
        engine.cancel(prompt)
    assert model_of(engine).pool.used == 0
    assert not model_of(engine).twins


def test_a_prompt_that_another_had_is_not_computed_again(tiny: Path) -> None:
    model = model_of(engine_with(tiny, tiny))
    first, second = new_sequence([7] * 40), new_sequence([7] * 40)
    second.id = "second"
    model.drafts([first], 1)
    assert model.follow(second).computed == 32


def test_a_draft_model_that_fails_takes_nobody_with_it(tiny: Path) -> None:
    plain = answers(engine_with(tiny, None))
    engine = engine_with(tiny, tiny)

    def broken(batch: Batch) -> Sampled:
        raise MemoryError("no memory")

    model_of(engine).backend.run = broken  # type: ignore[method-assign]
    assert answers(engine) == plain


def test_another_vocabulary_is_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    odd = write_tiny_gguf(tmp_path / "odd.gguf", more=("<|odd|>",))
    with pytest.raises(ValueError, match=r"draft: odd\.gguf has another vocabulary"):
        Engine.load(tiny, EngineOptions(backend="reference", kv_tokens=64, draft=odd))
