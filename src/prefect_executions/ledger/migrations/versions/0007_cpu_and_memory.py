"""Add the CPU time and the peak memory of an execution, which are in the bundles; a rebuild reads them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    for name in ("cpu", "memory"):
        op.add_column("executions", sa.Column(name, sa.BigInteger))
