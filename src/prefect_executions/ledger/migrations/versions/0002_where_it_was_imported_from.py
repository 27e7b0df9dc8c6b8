"""Tell when and from where an execution was imported."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what an imported execution has."""
    op.add_column("executions", sa.Column("imported", sa.BigInteger))
    op.add_column("executions", sa.Column("origin", sa.Text))
