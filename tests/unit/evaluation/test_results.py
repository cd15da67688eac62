from __future__ import annotations

from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from headrace.evaluation.dataset import Item
from headrace.evaluation.experiment import Outcome
from headrace.evaluation.graders import Exact, Grade, LatencyUnder
from headrace.evaluation.report import summarise
from headrace.evaluation.results import (
    HEAD,
    VERSIONS,
    Experiment,
    ResultStore,
    experiments_table,
    grades_table,
    items_table,
)
from headrace.evaluation.specification import Dataset, Specification, Target
from headrace.evaluation.target import Answer
from headrace.observability.store import CallStore, store_url
from headrace.observability.upgrade import ENVIRONMENT

SPECIFICATION = Specification(
    name="facts",
    dataset=Dataset(file="facts.jsonl"),
    target=Target(model="m"),
    graders=[Exact(), LatencyUnder(seconds=1)],
)


def outcome(number: int) -> Outcome:
    return Outcome(
        Item([{"role": "user", "content": f"q{number}"}], number, {"topic": "x"}),
        Answer(text="é\x00", seconds=0.1, call_id=f"req-{number}"),
        (Grade("exact", passed=False, note="no"), Grade("latency_under", passed=True)),
    )


def experiment(count: int) -> Experiment:
    outcomes = [outcome(number) for number in range(count)]
    return Experiment(
        started_at=1.0,
        finished_at=2.0,
        specification=SPECIFICATION,
        report=summarise(SPECIFICATION, outcomes),
        outcomes=outcomes,
    )


def test_results_are_kept_beside_the_calls_and_come_back_as_they_were(tmp_path: Path) -> None:
    store = CallStore(store_url(tmp_path))
    first = ResultStore(store.engine).add(experiment(12))
    second = ResultStore(store.engine).add(experiment(1))
    assert ResultStore(store.engine).outcomes(first) == [outcome(n) for n in range(12)]
    assert ResultStore(store.engine).outcomes(second) == [outcome(0)]
    with store.engine.connect() as connection:
        linked = connection.execute(
            select(items_table.c.number).where(items_table.c.call_id == "req-7")
        ).scalar()
    assert linked == 7
    store.close()


def test_a_run_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    store = CallStore(store_url(tmp_path))
    results = ResultStore(store.engine)
    broken = experiment(2)
    twice = (Grade("exact", passed=True), Grade("exact", passed=True))
    outcomes = [broken.outcomes[0], Outcome(Item("q"), Answer(seconds=0.0), twice)]
    with pytest.raises(SQLAlchemyError):
        results.add(
            Experiment(
                started_at=1.0,
                finished_at=2.0,
                specification=SPECIFICATION,
                report=broken.report,
                outcomes=outcomes,
            )
        )
    with store.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM experiments")).scalar() == 0
    store.close()


def test_the_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    store = CallStore(store_url(tmp_path))
    ResultStore(store.engine)
    inspector = inspect(store.engine)
    for table in (experiments_table, items_table, grades_table):
        made = {(c["name"], c["nullable"]) for c in inspector.get_columns(table.name)}
        assert made == {(c.name, bool(c.nullable)) for c in table.columns}
    scripts = ScriptDirectory(str(ENVIRONMENT), version_locations=[str(VERSIONS)])
    assert scripts.get_current_head() == HEAD
    store.close()
