"""Creation and migration of the ledger's tables with Alembic.

Alembic and SQLAlchemy are imported only to migrate a ledger, or to create it in PostgreSQL;
one query shows whether a ledger is up to date. A new SQLite file gets the statements of
`newest.sql`, which a test compares with the tables that the migrations create.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefect_executions.errors import LedgerError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

HEAD = "0008"
"""The revision of the newest migration."""

VERSION_TABLE = "ledger_version"
SCHEMA = "executions_ledger"
"""The ledger's schema in PostgreSQL, because Prefect or MLflow may have tables in the same database."""

LOCK = 0x6C6564676572
"""The key of the PostgreSQL advisory lock for the whole ledger."""

MIGRATIONS = Path(__file__).parent / "migrations"

_alembic_locks: dict[int, threading.Lock] = {}


def alembic_lock() -> threading.Lock:
    """Return the lock of this process for Alembic, whose `op` and `context` are global.

    There is one per process id, because a forked child must not inherit a held lock.
    """
    return _alembic_locks.setdefault(os.getpid(), threading.Lock())


def migrate(dialect: Literal["sqlite", "postgresql"], connect: Callable[[], Any], shown: str) -> None:
    """Migrate the database that *connect* opens to `HEAD` in one transaction; a second call changes nothing.

    *shown* is the ledger's URL for error messages.

    Raises:
        LedgerError: If a newer version of this package wrote the ledger, or the migration fails.
    """
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415  takes 0.4 s, not needed for a current ledger

    engine = _engine(dialect, connect)
    try:
        with engine.begin() as connection, alembic_lock():
            _upgrade(connection, shown)
    except DBAPIError as error:
        raise LedgerError(f"the ledger at {shown} cannot be migrated to version {HEAD}: {error.orig}") from error
    finally:
        engine.dispose()


def _engine(dialect: Literal["sqlite", "postgresql"], connect: Callable[[], Any]) -> Engine:
    from sqlalchemy import NullPool, create_engine, event, text  # noqa: PLC0415  not needed for a current ledger

    urls = {"sqlite": "sqlite://", "postgresql": "postgresql+psycopg://"}
    engine = create_engine(urls[dialect], creator=connect, poolclass=NullPool)

    def lock_ledger(connection: Connection) -> None:
        if dialect == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        connection.exec_driver_sql(f"SET LOCAL search_path TO {SCHEMA}")

    event.listen(engine, "begin", lock_ledger)
    return engine


def _upgrade(connection: Connection, shown: str) -> None:
    from alembic import command  # noqa: PLC0415  takes 0.3 s, not needed for a current ledger
    from alembic.config import Config  # noqa: PLC0415  not needed for a current ledger
    from alembic.migration import MigrationContext  # noqa: PLC0415  not needed for a current ledger
    from alembic.script import ScriptDirectory  # noqa: PLC0415  not needed for a current ledger

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    revisions = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    heads = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_heads()
    for revision in set(heads) - revisions:
        raise LedgerError(
            f"the ledger at {shown} has version {revision} but this package supports versions up to {HEAD}: "
            "a newer prefect-executions wrote it. Upgrade this package, or set EXECUTIONS_LEDGER to another database "
            "and run 'executions ledger rebuild'."
        )
    command.upgrade(config, "head")
