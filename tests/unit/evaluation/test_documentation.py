from __future__ import annotations

from pathlib import Path

import msgspec

from headrace.evaluation.dataset import load_items
from headrace.evaluation.graders import Contains, Exact, JsonSchema, LatencyUnder, Numeric, Regex
from headrace.evaluation.specification import (
    CallQuery,
    Dataset,
    Specification,
    Target,
    load_specification,
)
from headrace.observability.store import CallStore, store_url

DOCS = Path(__file__).parents[3] / "docs"


def test_every_field_and_grader_is_documented() -> None:
    told = (DOCS / "evaluation.md").read_text()
    for block, prefix in ((Specification, ""), (Dataset, "dataset."), (Target, "target.")):
        for field in msgspec.structs.fields(block):
            assert f"`{prefix}{field.name}" in told or f"{field.name}." in told, field.name
    for field in msgspec.structs.fields(CallQuery):
        assert f"`{field.name}`" in told
    for grader in (Exact, Contains, Regex, Numeric, JsonSchema, LatencyUnder):
        assert f"`{grader.__struct_config__.tag}`" in told
        for field in msgspec.structs.fields(grader):
            assert f"`{field.name}`" in told


def test_the_example_is_in_order(tmp_path: Path) -> None:
    path = DOCS / "examples" / "eval" / "facts.yaml"
    store = CallStore(store_url(tmp_path))
    items = load_items(load_specification(path), path, store, now=0.0)
    assert len(items) == 12
    store.close()
