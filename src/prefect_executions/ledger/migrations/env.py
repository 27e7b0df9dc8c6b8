"""Alembic's way in: it runs the steps on the connection that it is given, and owns no transaction."""

from __future__ import annotations

from alembic import context

from prefect_executions.ledger.migrate import VERSION_TABLE
from prefect_executions.ledger.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
