"""The tables of files and batches."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "offline_0001"
down_revision = None


def upgrade() -> None:
    """Create `files` and `batches`."""
    op.create_table(
        "files",
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("files_tenant", "files", ["tenant"])
    op.create_table(
        "batches",
        sa.Column("sequence", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("live", sa.Boolean, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("batches_tenant", "batches", ["tenant"])
