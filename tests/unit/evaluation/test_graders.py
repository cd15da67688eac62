from __future__ import annotations

import pytest

from headrace.evaluation.graders import (
    Contains,
    Exact,
    Expected,
    Grader,
    JsonSchema,
    LatencyUnder,
    Numeric,
    Regex,
    fault,
    grade,
    number_in,
)
from headrace.evaluation.isolation import IsolatedGrader, Task

POINT = {
    "type": "object",
    "properties": {"x": {"$ref": "#/$defs/n"}},
    "required": ["x"],
    "$defs": {"n": {"type": "number"}},
}


@pytest.mark.parametrize(
    ("grader", "answer", "expected", "passed"),
    [
        (Exact(), " Paris\n", "Paris", True),
        (Exact(), "paris", "Paris", False),
        (Exact(ignore_case=True), "PARIS", "paris", True),
        (Exact(), "4", 4, True),
        (Contains(), "It is Paris.", "Paris", True),
        (Contains(), "It is paris.", "Paris", False),
        (Contains(ignore_case=True), "STRASSE", "straße", True),
        (Regex(pattern=r"^\d+$"), "42", None, True),
        (Regex(pattern=r"^\d+$"), "42!", None, False),
        (Numeric(), "The answer is 1,234.5.", 1234.5, True),
        (Numeric(), "4 or 5", 4, False),
        (Numeric(tolerance=0.5), "3.6", "4", True),
        (Numeric(tolerance=0.1), "0.4", 0.3, True),
        (Numeric(), "none", 1, False),
        (JsonSchema(schema=POINT), '{"x": 1}', None, True),
        (JsonSchema(schema=POINT), '{"x": "1"}', None, False),
        (JsonSchema(schema=POINT), "x = 1", None, False),
        (JsonSchema(schema=POINT), "[" * 100_000, None, False),
        (JsonSchema(schema={"$ref": "http://127.0.0.1:9/s"}), "1", None, False),
        (JsonSchema(schema={"$ref": "#"}), "1", None, False),
        (LatencyUnder(seconds=0.6), "", None, True),
        (LatencyUnder(seconds=0.5), "", None, False),
    ],
)
def test_a_grader_passes_what_it_says(
    grader: Grader, answer: str, expected: Expected, passed: bool
) -> None:
    found = grade(grader, answer, expected, seconds=0.5)
    assert found.passed is passed
    assert bool(found.note) is not passed


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("-3", -3.0),
        ("between 10-5", 5.0),
        ("1,000,000", 1e6),
        ("6.02e23", 6.02e23),
        (".5", 0.5),
        ("3.", 3.0),
        ("one, two,", None),
        ("9" * 5000, float("inf")),
    ],
)
def test_the_last_number_of_a_text(text: str, number: float | None) -> None:
    assert number_in(text) == number


def test_a_grader_that_could_never_work_is_found_before_the_run() -> None:
    wrong = fault(Regex(pattern="("))
    assert wrong is not None
    assert wrong[0] == "pattern"
    wrong = fault(JsonSchema(schema={"type": "nothing"}))
    assert wrong is not None
    assert wrong[0] == "schema"
    assert fault(Regex(pattern="a")) is None


async def test_a_pattern_that_would_run_for_ever_fails_in_time_and_the_next_is_graded() -> None:
    isolated = IsolatedGrader(seconds=1.0)
    evil = Regex(pattern=r"^(a+)+$")
    found = await isolated.grade(Task(evil, "a" * 60 + "!", None, 0.0))
    assert (found.passed, found.note) == (False, "the grader took over 1 s and was stopped")
    schema = JsonSchema(schema={"patternProperties": {"^(a+)+$": {}}})
    found = await isolated.grade(Task(schema, '{"' + "a" * 60 + '!": 1}', None, 0.0))
    assert "was stopped" in found.note
    found = await isolated.grade(Task(Regex(pattern="né\nw"), "é né\nw", None, 0.0))
    assert found.passed
    await isolated.close()
