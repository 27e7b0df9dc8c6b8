"""Add the change feed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from prefect_executions.ledger.changes import new_token

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the change feed with a first row, so that a reader can start at the rows that exist now."""
    op.create_table(
        "changes",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False, autoincrement=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("execution", sa.Text().with_variant(sa.Text(collation="C"), "postgresql")),
        sa.Column("removed", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("number", name="changes_pkey"),
    )
    op.create_table(
        "change_counter",
        sa.Column("key", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key", name="change_counter_pkey"),
    )
    op.execute(sa.text("INSERT INTO change_counter (key, number) VALUES (1, 1)"))
    first = sa.text("INSERT INTO changes (number, token, removed) VALUES (1, :token, false)")
    op.execute(first.bindparams(token=new_token()))
