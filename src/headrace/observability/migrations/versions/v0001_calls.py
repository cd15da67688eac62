"""The table of calls."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "calls_0001"
down_revision = None


def upgrade() -> None:
    """Create `calls` and the indexes its filters use."""
    op.create_table(
        "calls",
        sa.Column(
            "sequence",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("started_at", sa.Double, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("provider", sa.Text),
        sa.Column("route", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("cache", sa.Text, nullable=False),
        sa.Column("duration", sa.Double, nullable=False),
        sa.Column("ttft", sa.Double),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost", sa.Double, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.UniqueConstraint("id", "started_at"),
    )
    op.create_index("calls_started_at", "calls", ["started_at"])
    op.create_index("calls_model", "calls", ["model", "sequence"])
    op.create_index("calls_status", "calls", ["status", "sequence"])
