"""The tables of experiments, their items and grades."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "evaluation_0001"
down_revision = None


def upgrade() -> None:
    """Create the three tables."""
    op.create_table(
        "experiments",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("finished_at", sa.Double, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("base_url", sa.Text, nullable=False),
        sa.Column("good", sa.Boolean, nullable=False),
        sa.Column("specification", sa.Text, nullable=False),
        sa.Column("report", sa.Text, nullable=False),
    )
    op.create_index("experiments_name", "experiments", ["name", "started_at"])
    op.create_table(
        "experiment_items",
        sa.Column("experiment_id", sa.Text, sa.ForeignKey("experiments.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("call_id", sa.Text),
        sa.Column("item", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
    )
    op.create_index("experiment_items_call", "experiment_items", ["call_id"])
    op.create_table(
        "experiment_grades",
        sa.Column("experiment_id", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("grader", sa.Text, primary_key=True),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id", "number"],
            ["experiment_items.experiment_id", "experiment_items.number"],
        ),
    )
