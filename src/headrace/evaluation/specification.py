"""The file of an experiment: its schema, and its problems with line and field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from headrace.config.document import Document, DocumentError, Problem, field_name, parse
from headrace.config.document import Path as FieldPath
from headrace.config.load import ConfigurationError
from headrace.config.secrets import FORM, is_reference
from headrace.evaluation.graders import Grader, fault
from headrace.observability.record import CallStatus

Count = Annotated[int, Meta(ge=1)]


class CallQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Recorded calls as a data set: what was asked, and as `expected` what was answered."""

    model: str | None = None
    route: str | None = None
    status: CallStatus = "ok"
    since: str | None = None
    limit: Count = 100


class Dataset(Struct, frozen=True, forbid_unknown_fields=True):
    """Exactly one of a JSONL file (relative to the experiment's) and a query on the call log."""

    file: str | None = None
    calls: CallQuery | None = None


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """What is graded: a model, or a route, of any OpenAI-compatible endpoint. Times in seconds."""

    model: str
    base_url: str = "http://127.0.0.1:8000/v1"
    endpoint: Literal["chat", "completions"] = "chat"
    key: str | None = None
    max_tokens: Count = 256
    temperature: Annotated[float, Meta(ge=0)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    stop: list[str] = []
    concurrency: Annotated[int, Meta(ge=1, le=1024)] = 4
    timeout: Annotated[float, Meta(gt=0)] = 120.0


class Specification(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file.

    A bar is the least that the graded share must reach; it is compared with the lower bound of the
    95% interval, or with the mean where `bars_on` says so. `seed` is sent with every request
    (null: none).
    """

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    dataset: Dataset
    target: Target
    graders: Annotated[list[Grader], Meta(min_length=1)]
    bars: dict[str, float] = {}
    bars_on: Literal["lower_bound", "mean"] = "lower_bound"
    seed: int | None = 0


def load_specification(path: Path) -> Specification:
    """Read an experiment's file. Raises ConfigurationError with line and field."""
    try:
        document = parse(path.read_bytes())
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        raise ConfigurationError(path, (Problem(1, "", reason),)) from None
    except DocumentError as error:
        raise ConfigurationError(path, error.problems) from None
    try:
        specification = msgspec.convert(document.value, Specification)
    except msgspec.ValidationError as error:
        raise ConfigurationError(path, (_problem(document, str(error)),)) from None
    problems = tuple(
        Problem(document.line(field), field_name(field), message)
        for field, message in _contradictions(specification)
    )
    if problems:
        raise ConfigurationError(path, problems)
    return specification


_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `(?P<key>key in )?\$(?P<path>.*)`)?$", re.DOTALL)
_FIELD = re.compile(r"(?:missing required|contains unknown) field `(?P<field>[^`]*)`")
_STEP = re.compile(r"\.(?P<name>[^.\[\]]+)|\[(?P<place>\d+)\]")


def _problem(document: Document, message: str) -> Problem:
    """The line and field of msgspec's message, which ends in the path as `$.target.model`."""
    match = _WHERE.match(message)
    what, place = (match["what"], match["path"] or "") if match else (message, "")
    path: FieldPath = tuple(
        int(step["place"]) if step["place"] else step["name"] for step in _STEP.finditer(place)
    )
    field = _FIELD.search(what)
    if field is not None:
        path = (*path, field["field"])
    return Problem(document.line(path), field_name(path), what)


def _contradictions(specification: Specification) -> list[tuple[FieldPath, str]]:
    found: list[tuple[FieldPath, str]] = []
    dataset, target = specification.dataset, specification.target
    if (dataset.file is None) == (dataset.calls is None):
        found.append((("dataset",), "expected either 'file' or 'calls'"))
    if target.key is not None and not is_reference(target.key):
        found.append((("target", "key"), f"expected {FORM}"))
    if not re.fullmatch(r"https?://[\x21-\x3f\x41-\x7e]+", target.base_url):
        wanted = "expected an address such as http://127.0.0.1:8000/v1, without a user or password"
        found.append((("target", "base_url"), wanted))
    names: set[str] = set()
    for place, grader in enumerate(specification.graders):
        if grader.name in names:
            message = f"another grader is named '{grader.name}'; give this one a name of its own"
            found.append((("graders", place), message))
        names.add(grader.name)
        wrong = fault(grader)
        if wrong is not None:
            found.append((("graders", place, wrong[0]), wrong[1]))
    for name, bar in specification.bars.items():
        if not 0 <= bar <= 1:
            found.append((("bars", name), "expected a share, from 0 to 1"))
        if name not in names:
            message = f"no grader has this name; there are {', '.join(sorted(names))}"
            found.append((("bars", name), message))
    return found
