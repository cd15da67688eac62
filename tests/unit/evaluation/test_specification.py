from __future__ import annotations

from pathlib import Path

import pytest

from headrace.config.load import ConfigurationError
from headrace.evaluation.dataset import load_items
from headrace.evaluation.graders import Contains, Numeric
from headrace.evaluation.specification import load_specification
from headrace.observability.record import CallRecord
from headrace.observability.store import CallStore, store_url

GOOD = """\
name: facts
dataset:
  file: facts.jsonl
target:
  model: small
graders:
  - type: contains
    ignore_case: true
  - type: numeric
    name: sum
    tolerance: 0.5
bars:
  contains: 0.8
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    return path


def test_a_file_in_order_is_read_with_its_defaults(tmp_path: Path) -> None:
    read = load_specification(written(tmp_path, GOOD))
    assert read.graders == [
        Contains(ignore_case=True),
        Numeric(name="sum", tolerance=0.5),
    ]
    assert read.target.base_url == "http://127.0.0.1:8000/v1"
    assert (read.bars, read.bars_on) == ({"contains": 0.8}, "lower_bound")


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        ("  model: small", "  model: 3", 5, "target.model"),
        ("  model: small", "  mode: small", 5, "target.mode"),
        ("  model: small", "  base_url: http://127.0.0.1/v1", 4, "target.model"),
        ("  model: small", "  model: m\n  base_url: ftp://x", 6, "target.base_url"),
        ("  model: small", "  model: m\n  key: secret", 6, "target.key"),
        ("type: numeric", "type: rubric", 9, "graders[1].type"),
        ("    tolerance: 0.5", "    tolerance: -1", 11, "graders[1].tolerance"),
        ("    name: sum", "    name: contains", 9, "graders[1]"),
        ("type: numeric\n    name: sum\n    tolerance: 0.5", "type: regex\n    pattern: (", 10,
         "graders[1].pattern"),
        ("  contains: 0.8", "  contain: 0.8", 13, "bars.contain"),
        ("  contains: 0.8", "  contains: 80", 13, "bars.contains"),
        ("  contains: 0.8", "  contains: much", 12, "bars"),
        ("  file: facts.jsonl", "  file: f\n  calls: {}", 2, "dataset"),
        ("  file: facts.jsonl", "  calls:\n    limit: 0", 4, "dataset.calls.limit"),
        ("name: facts", "name: [", 3, ""),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_line_and_field(
    tmp_path: Path, old: str, new: str, line: int, field: str
) -> None:
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigurationError) as refused:
        load_specification(path)
    (problem,) = refused.value.problems
    assert (problem.line, problem.field) == (line, field), problem.message


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        load_specification(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("lines", "line", "said"),
    [
        ('{"input": "a", "expected": "b"}\n\n{"input": 3}', 3, "input"),
        ('{"input": "a", "expected": "b"}\n{"input"', 2, "truncated"),
        ('{"input": "a", "expected": "b"}\n{"input": "a"}', 2, "'contains' needs it"),
        ('{"input": "", "expected": "b"}', 1, "got nothing"),
        ('{"input": "a", "expected": "b", "wrong": 1}', 1, "wrong"),
        ("\n", 1, "empty"),
    ],
)
def test_a_bad_data_set_is_refused_with_its_line(
    tmp_path: Path, lines: str, line: int, said: str
) -> None:
    (tmp_path / "facts.jsonl").write_text(lines)
    path = written(tmp_path, GOOD)
    store = CallStore(store_url(tmp_path))
    with pytest.raises(ConfigurationError, match=said) as refused:
        load_items(load_specification(path), path, store, now=0.0)
    assert refused.value.problems[0].line == line
    assert refused.value.path == tmp_path / "facts.jsonl"
    store.close()


def test_recorded_calls_are_a_data_set_whose_expected_answer_is_what_was_answered(
    tmp_path: Path,
) -> None:
    def call(call_id: str, **fields: object) -> CallRecord:
        return CallRecord(
            id=call_id, started_at=1000.0, tenant="t", endpoint="chat", model="m", stream=False,
            status="ok", http_status=200, duration=1.0, **fields,  # type: ignore[arg-type]
        )  # fmt: skip

    store = CallStore(store_url(tmp_path))
    question = [{"role": "user", "content": "2+2?"}]
    store.insert(
        [
            call("a", input={"messages": question}, output={"text": "4"}),
            call("b", input=None, output=None),
            call("c", input={"prompt": [1, 2]}, output={"text": "tokens"}),
            call("d", input={"prompt": "3+3?"}, output={"text": "6"}),
        ]
    )
    path = written(tmp_path, GOOD.replace("  file: facts.jsonl", "  calls:\n    since: 1h"))
    items = load_items(load_specification(path), path, store, now=2000.0)
    assert [(item.input, item.expected, item.metadata["call_id"]) for item in items] == [
        ("3+3?", "6", "d"),
        (question, "4", "a"),
    ]
    with pytest.raises(ConfigurationError, match="the data set is empty"):
        load_items(load_specification(path), path, store, now=10_000.0)
    store.close()
