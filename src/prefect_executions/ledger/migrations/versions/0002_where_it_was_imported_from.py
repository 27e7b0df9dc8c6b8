"""Add the time and origin of imports."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns of imported executions."""
    op.add_column("executions", sa.Column("imported", sa.BigInteger))
    op.add_column("executions", sa.Column("origin", sa.Text))
