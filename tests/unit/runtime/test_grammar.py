"""Constrained answers, over a tiny random model that would never form one by itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.grammar import CHARACTERS
from headrace.runtime.options import Limits
from headrace.runtime.request import Grammar, Output, Request, RequestRefused, SamplingParameters

WARM = SamplingParameters(temperature=1, max_tokens=200, seed=5)
GREEDY = SamplingParameters(temperature=0, max_tokens=40)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["cat", "dog", "Ünal"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "kind", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[Engine]:
    options = EngineOptions(
        backend="reference", kv_tokens=2048, block_size=8, limits=Limits(64, 16, 64)
    )
    with Engine.load(tiny, options) as loaded:
        yield loaded


def schema(value: object) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


@pytest.mark.parametrize("seed", range(8))
def test_an_answer_under_a_schema_is_an_instance_of_it(engine: Engine, seed: int) -> None:
    done = engine.generate("x", replace(WARM, seed=seed), schema(PERSON))
    person = json.loads(done.text)
    assert done.finish.reason == "stop"
    assert list(person) == ["name", "kind", "age"]
    assert len(person["name"]) <= 6
    assert person["kind"] in ("cat", "dog", "Ünal")
    assert 0 <= person["age"] <= 99


def test_an_answer_under_a_choice_is_one_of_them_and_all_of_them_come(engine: Engine) -> None:
    choices = ["red", "green", "über", 'a "quoted" one\\', "two\nlines"]
    grammar = Grammar("choice", json.dumps(choices))
    seen = {engine.generate("x", replace(WARM, seed=seed), grammar).text for seed in range(40)}
    assert seen == set(choices)


def test_a_choice_that_begins_another_can_still_be_chosen(engine: Engine) -> None:
    grammar = Grammar("choice", '["ab", "abc"]')
    texts = {engine.generate("x", replace(WARM, seed=seed), grammar).text for seed in range(30)}
    assert texts == {"ab", "abc"}


@pytest.mark.parametrize("pattern", [r"[a-f]{3}-[0-9]{4}", r"a/b\/c\\", "x\ny{1,3}", r"(é|ü){2}"])
def test_an_answer_under_a_regular_expression_matches_it(engine: Engine, pattern: str) -> None:
    done = engine.generate("x", WARM, Grammar("regex", pattern))
    assert re.fullmatch(pattern, done.text)
    assert done.finish.reason == "stop"


def test_an_answer_under_a_lark_grammar_is_of_it(engine: Engine) -> None:
    source = 'start: sum\nsum: NUMBER ("+" NUMBER){1,2}\nNUMBER: /[1-9][0-9]?/'
    done = engine.generate("x", WARM, Grammar("lark", source))
    assert re.fullmatch(r"[1-9]\d?(\+[1-9]\d?){1,2}", done.text)


def test_any_json_object_may_be_asked_for(engine: Engine) -> None:
    done = engine.generate("x", replace(WARM, max_tokens=30), Grammar("json_object"))
    assert done.text.lstrip(" \n\t").startswith("{")
    if done.finish.reason == "stop":
        assert isinstance(json.loads(done.text), dict)


def test_max_tokens_cuts_a_constrained_answer(engine: Engine) -> None:
    done = engine.generate("x", replace(WARM, max_tokens=3), Grammar("regex", "a{10}"))
    assert (done.text, done.finish.reason) == ("aaa", "length")


def test_a_stop_string_ends_a_constrained_answer(engine: Engine) -> None:
    done = engine.generate("x", replace(WARM, stop=("c",)), Grammar("regex", "abcd"))
    assert (done.text, done.finish.reason) == ("ab", "stop")


def test_an_answer_ends_with_its_grammar_even_where_end_tokens_do_not_count(
    engine: Engine,
) -> None:
    asked = replace(WARM, ignore_eos=True, min_tokens=20)
    done = engine.generate("x", asked, Grammar("regex", "abc"))
    assert (done.text, done.finish.reason) == ("abc", "stop")


def test_a_grammar_that_allows_everything_changes_nothing(smollm2: Path) -> None:
    with Engine.load(smollm2, EngineOptions(kv_tokens=1024)) as engine:
        everything = Grammar("regex", r"(.|\n)*")
        messages = [{"role": "user", "content": "Name three colours."}]
        free = engine.generate(messages, GREEDY)
        assert engine.generate(messages, GREEDY, everything).tokens == free.tokens


def test_a_constrained_row_changes_nothing_for_its_neighbours(engine: Engine) -> None:
    def tokens(outputs: list[Output], id: str) -> tuple[int, ...]:
        return tuple(token for one in outputs if one.id == id for token in one.tokens)

    asked = [replace(WARM, seed=seed, max_tokens=12) for seed in range(6)]
    alone = [engine.generate("Tell me", one).tokens for one in asked]
    for index, one in enumerate(asked):
        engine.submit(Request(f"free {index}", "Tell me", one))
        engine.submit(Request(f"bound {index}", "Tell me", one, grammar=schema(PERSON)))
    outputs: list[Output] = []
    while not engine.idle:
        outputs += engine.step()
    assert [tokens(outputs, f"free {index}") for index in range(len(asked))] == alone


def test_a_preempted_answer_goes_on_where_it_stood_in_its_grammar(tiny: Path) -> None:
    limits = Limits(64, 4, 8)
    options = EngineOptions(backend="reference", kv_tokens=96, block_size=8, limits=limits)
    with Engine.load(tiny, options) as engine:
        for index in range(3):
            grammar = Grammar("regex", r"([a-c]{4} ){9}")
            engine.submit(Request(str(index), "x" * 20, WARM, grammar=grammar))
        texts = {str(index): "" for index in range(3)}
        while not engine.idle:
            for output in engine.step():
                texts[output.id] += output.text
        assert engine.counters().preempted > 0
        assert all(re.fullmatch(r"([a-c]{4} ){9}", text) for text in texts.values())


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        (Grammar("json_schema", "{"), "is not JSON"),
        (Grammar("json_schema", "[]"), "an object"),
        (Grammar("json_schema", '{"type": "wrong"}'), "wrong"),
        (Grammar("json_schema", '{"type": "object", "unevaluatedProperties": false}'), "uneval"),
        (Grammar("regex", "a" * CHARACTERS), "characters"),
        (Grammar("regex", "(a"), "unclosed group"),
        (Grammar("lark", "start: nothing"), "nothing"),
        (Grammar("lark", 'start: "a" start'), "Too many items"),
        (Grammar("json_schema", '{"$ref": "#"}'), "no text is of it"),
        (Grammar("choice", "[]"), "not empty"),
        (Grammar("choice", '["a", ""]'), "not empty"),
        (Grammar("choice", "[1]"), "strings"),
    ],
)
def test_a_grammar_that_is_not_sound_is_refused(
    engine: Engine, grammar: Grammar, says: str
) -> None:
    with pytest.raises(RequestRefused, match=says) as refused:
        engine.generate("x", WARM, grammar)
    assert refused.value.code == "invalid_value"
    assert refused.value.details == {"field": "response_format"}
    assert engine.idle


def test_without_llguidance_the_engine_runs_and_refuses_grammars(tiny: Path) -> None:
    script = f"""
import sys
sys.modules["llguidance"] = None  # as if it were not installed
from pathlib import Path
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.request import Grammar, RequestRefused, SamplingParameters
few = SamplingParameters(max_tokens=3, ignore_eos=True)
with Engine.load(Path({str(tiny)!r}), EngineOptions(backend="reference", kv_tokens=64)) as engine:
    assert len(engine.generate("x", few).tokens) == 3
    try:
        engine.generate("x", few, Grammar("json_object"))
    except RequestRefused as refused:
        print(refused.message)
"""
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "llguidance, which is not installed" in said.stdout


def test_keywords_that_cannot_be_enforced_are_passed_over_on_request(engine: Engine) -> None:
    source = '{"type": "object", "unevaluatedProperties": false, "additionalProperties": false}'
    done = engine.generate("x", WARM, Grammar("json_schema", source, lenient=True))
    assert json.loads(done.text) == {}


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("regex", "(a{1000}){1000}"),
        schema({"anyOf": [{"properties": {f"{i} {j}": {} for j in range(60)}} for i in range(60)]}),
        schema({"allOf": [{"anyOf": [{"const": i} for i in range(9)]} for _ in range(9)]}),
        schema({"enum": [f"value {i}" for i in range(9000)]}),
        schema({"type": "array", "minItems": 10**9, "items": {"type": "string"}}),
    ],
)
def test_a_hostile_grammar_is_refused_or_costs_little(engine: Engine, grammar: Grammar) -> None:
    with suppress(RequestRefused):
        engine.generate("x", replace(WARM, max_tokens=3), grammar)
    assert engine.generate("x", WARM, Grammar("choice", '["still here"]')).text == "still here"
