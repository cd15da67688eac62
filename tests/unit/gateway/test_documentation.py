"""docs/api.md, docs/records.md and docs/protections.md name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headrace.gateway.app import ANSWERING
from headrace.gateway.engine_metrics import COUNTERS, GAUGES, RATIOS
from headrace.protocol.generation import GenerationRequest

DOCS = Path(__file__).parents[3] / "docs"
# Fields that other words of the page stand for.
OTHERWISE = {
    "endpoint",
    "dialect",
    "model",
    "messages",
    "prompt",
    "stream",
    "include_usage",
    "objectives",
    "tenant",
    "extra",
}


@pytest.mark.parametrize("path", ANSWERING)
def test_every_path_is_told(path: str) -> None:
    assert f"`POST {path}`" in (DOCS / "api.md").read_text()


@pytest.mark.parametrize("field", sorted({*GenerationRequest.__struct_fields__} - OTHERWISE))
def test_every_field_of_a_generation_is_told(field: str) -> None:
    assert f"`{field}`" in (DOCS / "api.md").read_text()


def test_every_protection_has_its_tests() -> None:
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "protections.md").read_text()))
    tests = [path.read_text() for path in (DOCS.parent / "tests").rglob("test_*.py")]
    assert named - {name for text in tests for name in re.findall(r"def (test_\w+)", text)} == set()


def test_every_metric_of_an_engine_is_told() -> None:
    text = (DOCS / "records.md").read_text()
    named = [name for name, _ in GAUGES.values()]
    named += [f"{name}_total" for name, _ in COUNTERS.values()]
    named += [*RATIOS, "headrace_engine_restarts_total"]
    assert [name for name in named if f"`{name}`" not in text] == []
