"""The Alembic environment: it runs the migrations on the caller's connection and in the caller's transaction."""

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
