"""Graders: each says of one answer whether it is good, and why not.

A grader is data (one entry of `graders` in the file); `grade` is the function over it.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from msgspec import Meta, Struct
from referencing import Registry
from referencing.exceptions import Unresolvable

Expected = str | int | float | None
Name = Annotated[str, Meta(min_length=1, max_length=100)]


class Exact(Struct, frozen=True, tag="exact", tag_field="type", forbid_unknown_fields=True):
    """The answer is `expected`, white space around both aside."""

    name: Name = "exact"
    ignore_case: bool = False


class Contains(Struct, frozen=True, tag="contains", tag_field="type", forbid_unknown_fields=True):
    """`expected` stands somewhere in the answer."""

    name: Name = "contains"
    ignore_case: bool = False


class Regex(Struct, frozen=True, tag="regex", tag_field="type", forbid_unknown_fields=True):
    """`pattern` (Python's re) is found somewhere in the answer."""

    pattern: str
    name: Name = "regex"


class Numeric(Struct, frozen=True, tag="numeric", tag_field="type", forbid_unknown_fields=True):
    """The last number in the answer is within `tolerance` of `expected`."""

    name: Name = "numeric"
    tolerance: Annotated[float, Meta(ge=0)] = 0.0


class JsonSchema(
    Struct, frozen=True, tag="json_schema", tag_field="type", forbid_unknown_fields=True
):
    """The whole answer is JSON that is valid under `schema` (draft 2020-12).

    `$ref` reaches what is inside the schema; nothing is fetched.
    """

    schema: dict[str, Any]
    name: Name = "json_schema"


class LatencyUnder(
    Struct, frozen=True, tag="latency_under", tag_field="type", forbid_unknown_fields=True
):
    """The whole answer came in less than `seconds`."""

    seconds: Annotated[float, Meta(gt=0)]
    name: Name = "latency_under"


Grader = Exact | Contains | Regex | Numeric | JsonSchema | LatencyUnder
NEEDS_EXPECTED = (Exact, Contains, Numeric)
UNBOUNDED = (Regex, JsonSchema)  # a pattern of the user's may run for ever on some text


class Grade(Struct, frozen=True):
    """What one grader says of one answer; `note` is empty where it passed."""

    grader: str
    passed: bool
    note: str = ""


_NUMBER = re.compile(r"(?:(?<!\w)[-+])?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


def fault(grader: Grader) -> tuple[str, str] | None:
    """The field and what is wrong with it, if this grader could never work."""
    if isinstance(grader, Regex):
        try:
            re.compile(grader.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            return "pattern", f"expected a regular expression: {error}"
    if isinstance(grader, JsonSchema):
        try:
            Draft202012Validator.check_schema(grader.schema)
        except SchemaError as error:
            return "schema", f"expected a JSON schema: {error.message}"
        except RecursionError:
            return "schema", "expected a JSON schema that is not nested as deeply"
    return None


def grade(grader: Grader, answer: str, expected: Expected, seconds: float) -> Grade:
    """Grade one answer. `seconds` is how long it took; `expected` must be given where needed."""
    note = _objection(grader, answer, expected, seconds)
    return Grade(grader.name, passed=note is None, note=note or "")


def number_in(text: str) -> float | None:
    """The last number in `text` (commas between digits are dropped), or None."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    return float(found[-1].replace(",", ""))


def _objection(grader: Grader, answer: str, expected: Expected, seconds: float) -> str | None:
    match grader:
        case Exact(ignore_case=ignore_case):
            said, wanted = _folded(answer.strip(), str(expected).strip(), ignore_case)
            return None if said == wanted else f"expected {_short(wanted)}"
        case Contains(ignore_case=ignore_case):
            said, wanted = _folded(answer, str(expected), ignore_case)
            return None if wanted in said else f"{_short(wanted)} is not in it"
        case Regex(pattern=pattern):
            return None if re.search(pattern, answer) else "the pattern is not found"
        case Numeric(tolerance=tolerance):
            return _numeric_objection(answer, expected, tolerance)
        case JsonSchema(schema=schema):
            return _schema_objection(answer, schema)
        case LatencyUnder(seconds=limit):
            return None if seconds < limit else f"took {seconds:.3f} s"


def _folded(answer: str, expected: str, ignore_case: bool) -> tuple[str, str]:
    return (answer.casefold(), expected.casefold()) if ignore_case else (answer, expected)


def _numeric_objection(answer: str, expected: Expected, tolerance: float) -> str | None:
    wanted = number_in(str(expected))
    found = number_in(answer)
    if found is None or wanted is None:
        return "there is no number in it"
    # what binary fractions cannot hold must not fail 0.1 + 0.2 against 0.3
    slack = 1e-12 * max(abs(wanted), abs(found))
    return None if abs(found - wanted) <= tolerance + slack else f"{found:g} is not {wanted:g}"


def _schema_objection(answer: str, schema: dict[str, Any]) -> str | None:
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    try:
        validator = Draft202012Validator(schema, registry=Registry())
        problem = next(validator.iter_errors(value), None)
    except (Unresolvable, RecursionError) as error:
        return f"the schema cannot be applied: {type(error).__name__}"
    return None if problem is None else f"{problem.json_path}: {_short(problem.message)}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:117] + "...")
