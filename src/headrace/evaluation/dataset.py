"""Data sets: what is asked, and what is expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from headrace.config.document import Problem
from headrace.config.load import ConfigurationError
from headrace.evaluation.graders import NEEDS_EXPECTED, Expected
from headrace.evaluation.specification import CallQuery, Specification
from headrace.observability.moment import parse_moment
from headrace.observability.record import CallRecord
from headrace.observability.store import CallFilter, CallStore

MAX_BYTES = 256 * 1024 * 1024


class Item(Struct, frozen=True, forbid_unknown_fields=True):
    """One question: a prompt or messages as `input`, and the answer expected, if any."""

    input: str | list[dict[str, Any]]
    expected: Expected = None
    metadata: dict[str, Any] = {}


def load_items(
    specification: Specification, path: Path, store: CallStore, now: float
) -> list[Item]:
    """The items of the specification in the file `path`.

    Raises ConfigurationError where the data set cannot be read, is empty, or does not fit the
    graders or the target.
    """
    source = specification.dataset
    if source.file is not None:
        place = path.parent / source.file
        numbered = _read_jsonl(place)
    else:
        place = path
        recorded = _from_calls(source.calls or CallQuery(), store, path, now)
        numbered = [(1, item) for item in recorded if _misfit(specification, item) is None]
    if not numbered:
        raise ConfigurationError(place, (Problem(1, "dataset", "the data set is empty"),))
    for line, item in numbered:
        problem = _misfit(specification, item)
        if problem is not None:
            raise ConfigurationError(place, (Problem(line, *problem),))
    return [item for _, item in numbered]


def _misfit(specification: Specification, item: Item) -> tuple[str, str] | None:
    """The field, and why this item cannot be asked or graded."""
    if specification.target.endpoint == "completions" and not isinstance(item.input, str):
        return "input", "expected a string, as the target's endpoint is completions"
    if not item.input:
        return "input", "expected a prompt or messages, got nothing"
    if item.expected is None:
        for grader in specification.graders:
            if isinstance(grader, NEEDS_EXPECTED):
                return "expected", f"missing; the grader '{grader.name}' needs it"
    return None


def _read_jsonl(path: Path) -> list[tuple[int, Item]]:
    try:
        if path.stat().st_size > MAX_BYTES:
            wanted = f"expected a file of at most {MAX_BYTES} bytes"
            raise ConfigurationError(path, (Problem(1, "", wanted),))
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        raise ConfigurationError(path, (Problem(1, "", reason),)) from None
    decoder = msgspec.json.Decoder(Item)
    items: list[tuple[int, Item]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            items.append((number, decoder.decode(line)))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(path, (Problem(number, "", str(error)),)) from None
    return items


def _from_calls(query: CallQuery, store: CallStore, path: Path, now: float) -> list[Item]:
    try:
        since = None if query.since is None else parse_moment(query.since, now)
    except ValueError as error:
        field = "dataset.calls.since"
        raise ConfigurationError(path, (Problem(1, field, str(error)),)) from None
    which = CallFilter(
        model=query.model, route=query.route, status=query.status, since=since, limit=query.limit
    )
    found = (_item(record) for record in store.calls(which))
    return [item for item in found if item is not None]


def _item(record: CallRecord) -> Item | None:
    """The question of a recorded call; None where it is not recorded as text."""
    asked = record.input or {}
    question = asked.get("messages") or asked.get("prompt")
    if not isinstance(question, str) and not (
        isinstance(question, list) and all(isinstance(turn, dict) for turn in question)
    ):
        return None
    answered = (record.output or {}).get("text")
    expected = answered if isinstance(answered, str) and answered else None
    return Item(question, expected, {"call_id": record.id})
