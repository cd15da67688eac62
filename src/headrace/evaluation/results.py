"""The results of experiments, beside the calls in the same database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import msgspec
from msgspec import Struct
from sqlalchemy import (
    Boolean,
    Column,
    Double,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    insert,
    select,
)

from headrace.evaluation.dataset import Item
from headrace.evaluation.experiment import Outcome
from headrace.evaluation.graders import Grade
from headrace.evaluation.report import Report
from headrace.evaluation.specification import Specification
from headrace.evaluation.target import Answer
from headrace.observability.database import migrate

VERSIONS = Path(__file__).parent / "migrations" / "versions"
HEAD = "evaluation_0001"

_metadata = MetaData()
experiments_table = Table(
    "experiments",
    _metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("finished_at", Double, nullable=False),
    Column("model", Text, nullable=False),
    Column("base_url", Text, nullable=False),
    Column("good", Boolean, nullable=False),
    Column("specification", Text, nullable=False),  # JSON, as the next one
    Column("report", Text, nullable=False),
)
items_table = Table(
    "experiment_items",
    _metadata,
    Column("experiment_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True),  # its place in the data set, from 0
    Column("call_id", Text),  # of the call in `calls`, where the target logs there
    Column("item", Text, nullable=False),  # JSON, as the next one
    Column("answer", Text, nullable=False),
)
grades_table = Table(
    "experiment_grades",
    _metadata,
    Column("experiment_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("grader", Text, primary_key=True),
    Column("passed", Boolean, nullable=False),
    Column("note", Text, nullable=False),
)


class Experiment(Struct, frozen=True, kw_only=True):
    """One run. Times are Unix seconds."""

    started_at: float
    finished_at: float
    specification: Specification
    report: Report
    outcomes: Sequence[Outcome]


class ResultStore:
    """Experiments in the database of `engine`; the constructor makes its tables."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        migrate(engine, VERSIONS, "evaluation_version", HEAD)

    def add(self, experiment: Experiment) -> str:
        """Store a run whole, or not at all; its new id. Raises SQLAlchemyError."""
        experiment_id = uuid4().hex
        specification = experiment.specification
        with self._engine.begin() as connection:
            connection.execute(
                insert(experiments_table),
                {
                    "id": experiment_id,
                    "name": specification.name,
                    "started_at": experiment.started_at,
                    "finished_at": experiment.finished_at,
                    "model": specification.target.model,
                    "base_url": specification.target.base_url,
                    "good": experiment.report.good,
                    "specification": _json(specification),
                    "report": _json(experiment.report),
                },
            )
            connection.execute(
                insert(items_table),
                [
                    {
                        "experiment_id": experiment_id,
                        "number": number,
                        "call_id": outcome.answer.call_id,
                        "item": _json(outcome.item),
                        "answer": _json(outcome.answer),
                    }
                    for number, outcome in enumerate(experiment.outcomes)
                ],
            )
            connection.execute(
                insert(grades_table),
                [
                    {
                        "experiment_id": experiment_id,
                        "number": number,
                        "grader": grade.grader,
                        "passed": grade.passed,
                        "note": grade.note,
                    }
                    for number, outcome in enumerate(experiment.outcomes)
                    for grade in outcome.grades
                ],
            )
        return experiment_id

    def outcomes(self, experiment_id: str) -> list[Outcome]:
        """The outcomes of one run, in the data set's order; none for an unknown id."""
        items, grades = items_table.c, grades_table.c
        with self._engine.connect() as connection:
            asked = connection.execute(
                select(items.item, items.answer)
                .where(items.experiment_id == experiment_id)
                .order_by(items.number)
            ).all()
            graded = connection.execute(
                select(grades.number, grades.grader, grades.passed, grades.note)
                .where(grades.experiment_id == experiment_id)
                .order_by(grades.number, grades.grader)
            ).all()
        given: list[list[Grade]] = [[] for _ in asked]
        for number, grader, passed, note in graded:
            given[number].append(Grade(grader, passed, note))
        return [
            Outcome(
                msgspec.json.decode(item, type=Item),
                msgspec.json.decode(answer, type=Answer),
                tuple(given[number]),
            )
            for number, (item, answer) in enumerate(asked)
        ]


def _json(value: Struct) -> str:
    return msgspec.json.encode(value).decode()
