"""Add the table of annotations, and which seals are signed; a rebuild reads both from the archive."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the column and the table."""
    op.add_column("executions", sa.Column("signed", sa.Boolean))
    op.create_table(
        "annotations",
        sa.Column("execution", _KEY, nullable=False),
        sa.Column("position", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("agent", sa.Text),
        sa.Column("signer", sa.Text),
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("execution", "position", name="annotations_pkey"),
        sa.ForeignKeyConstraint(
            ["execution"], ["executions.key"], name="annotations_execution_fkey", ondelete="CASCADE"
        ),
        sqlite_with_rowid=False,
    )
