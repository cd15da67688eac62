"""Which models a request is tried on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.schema import Configuration, Match, Model, Route, UpstreamProvider
from headrace.protocol.errors import ModelNotFound
from headrace.router.facts import Facts
from headrace.router.plan import Plan, Snapshot
from headrace.router.rules import Rulebook
from headrace.router.select import plan

CONFIGURATION = Configuration(
    providers={"openai": UpstreamProvider(), "other": UpstreamProvider()},
    models={
        "small": Model(source="smollm2-135m"),
        "gpt": Model(source="gpt-4.1", provider="openai"),
        "other": Model(source="o-1", provider="other"),
    },
    routes=(
        Route(name="assistant", when=Match(model="assistant"), attempts=("gpt", "other", "small")),
        Route(name="renamed", when=Match(model="other"), attempts=("small",)),
    ),
)
HEALTHY = Snapshot()


def decide(
    model: str, health: Snapshot = HEALTHY, configuration: Configuration = CONFIGURATION
) -> Plan:
    facts = Facts(endpoint="chat", model=model)
    return plan(facts, Rulebook(configuration), "v1", health)


def tried(decision: Plan) -> list[str]:
    return [attempt.model for attempt in decision.attempts]


def test_a_route_gives_its_models_in_order() -> None:
    decision = decide("assistant")
    assert decision.route == "assistant"
    assert decision.version == "v1"
    assert [(a.model, a.provider, a.upstream_model) for a in decision.attempts] == [
        ("gpt", "openai", "gpt-4.1"),
        ("other", "other", "o-1"),
        ("small", "local", "smollm2-135m"),
    ]


def test_without_a_route_the_model_of_that_name_stands_alone() -> None:
    decision = decide("gpt")
    assert (decision.route, tried(decision)) == ("model:gpt", ["gpt"])


def test_a_route_goes_before_the_model_of_the_same_name() -> None:
    assert tried(decide("other")) == ["small"]


def test_the_first_route_that_matches_is_taken() -> None:
    routes = (
        Route(name="all", attempts=("small",)),
        Route(name="late", when=Match(model="x"), attempts=("gpt",)),
    )
    configuration = Configuration(models=CONFIGURATION.models, routes=routes)
    assert decide("x", configuration=configuration).route == "all"


def test_an_unknown_model_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ModelNotFound) as caught:
        decide("nope")
    assert str(caught.value) == (
        "The model 'nope' does not exist. Available: small, gpt, other, assistant."
    )


def test_a_cooling_provider_is_skipped_and_the_reason_kept() -> None:
    decision = decide("assistant", Snapshot(cooling={"openai/gpt-4.1": "'openai/gpt-4.1' cools"}))
    assert tried(decision) == ["other", "small"]
    assert [(s.model, s.provider, s.reason) for s in decision.skipped] == [
        ("gpt", "openai", "'openai/gpt-4.1' cools")
    ]


def test_when_every_candidate_cools_all_are_tried_in_order_and_the_reason_says_so() -> None:
    cooling = {
        name: f"'{name}' cools" for name in ("openai/gpt-4.1", "other", "local/smollm2-135m")
    }
    decision = decide("assistant", Snapshot(cooling=cooling))
    assert tried(decision) == ["gpt", "other", "small"]
    assert decision.skipped == ()
    for attempt in decision.attempts:
        assert "tried although '" in attempt.reason
        assert "every candidate is cooling" in attempt.reason


def test_reasons_are_sentences_that_name_route_and_place() -> None:
    assert [attempt.reason for attempt in decide("assistant").attempts] == [
        "first choice of route 'assistant', which matches model 'assistant'",
        "fallback 1 of route 'assistant', if those before it fail",
        "fallback 2 of route 'assistant', if those before it fail",
    ]
    assert decide("gpt").attempts[0].reason == "the model asked for; no route matches 'gpt'"


NAMES = st.sampled_from(["a", "b", "c", "d"])


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    models = draw(st.dictionaries(NAMES, NAMES, min_size=1))
    chains = st.lists(st.sampled_from(sorted(models)), min_size=1, unique=True)
    routes = draw(st.lists(st.tuples(st.none() | NAMES, chains), max_size=3))
    return Configuration(
        providers={name: UpstreamProvider() for name in "abcd"},
        models={name: Model(source=name, provider=provider) for name, provider in models.items()},
        routes=tuple(
            Route(name=f"r{place}", when=Match(model=model), attempts=tuple(chain))
            for place, (model, chain) in enumerate(routes)
        ),
    )


@given(configurations(), NAMES, st.dictionaries(NAMES, st.just("it cools")))
def test_a_plan_is_the_same_again_and_loses_no_candidate(
    configuration: Configuration, model: str, cooling: dict[str, str]
) -> None:
    health = Snapshot(cooling=cooling)
    try:
        first = decide(model, health, configuration)
    except ModelNotFound:
        assert model not in configuration.models
        return
    copied = Snapshot(cooling=dict(reversed(cooling.items())))
    assert decide(model, copied, configuration) == first
    assert first.attempts
    well = decide(model, HEALTHY, configuration)
    assert sorted([*tried(first), *(s.model for s in first.skipped)]) == sorted(tried(well))
    assert [name for name in tried(well) if name in tried(first)] == tried(first)
