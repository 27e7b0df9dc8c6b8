"""The Alembic migrations of the ledger; a released migration never changes."""
