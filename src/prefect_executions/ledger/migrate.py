"""The version of the ledger's tables, and the way from an older one to it.

Alembic and SQLAlchemy are imported only when a ledger has to be made or
changed: a ledger of today is known by one query.
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

HEAD = "0002"
"""The newest migration."""

VERSION_TABLE = "ledger_version"
SCHEMA = "executions_ledger"
"""The ledger's schema in PostgreSQL: Prefect or MLflow may have tables in the same database."""

LOCK = 0x6C6564676572
"""The number of the advisory lock in PostgreSQL that stands for the whole ledger."""

MIGRATIONS = Path(__file__).parent / "migrations"

_turns: dict[int, threading.Lock] = {}
"""Alembic's `op` and `context` are of the whole process: its threads take turns, a forked child those of its own."""


def migrate(dialect: Literal["sqlite", "postgresql"], connect: Callable[[], Any], shown: str) -> None:
    """Bring the database that *connect* opens to `HEAD`, in one transaction; the second of two does nothing.

    Raises:
        LedgerError: If a newer version of this package wrote it, or the database refuses.
    """
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415  0.4 s that only a new ledger pays

    engine = _engine(dialect, connect)
    try:
        with engine.begin() as connection, _turns.setdefault(os.getpid(), threading.Lock()):
            _upgrade(connection, shown)
    except DBAPIError as error:
        raise LedgerError(f"the ledger at {shown} cannot be brought to version {HEAD}: {error.orig}") from error
    finally:
        engine.dispose()


def _engine(dialect: Literal["sqlite", "postgresql"], connect: Callable[[], Any]) -> Engine:
    from sqlalchemy import NullPool, create_engine, event, text  # noqa: PLC0415  the same

    names = {"sqlite": "sqlite://", "postgresql": "postgresql+psycopg://"}
    engine = create_engine(names[dialect], creator=connect, poolclass=NullPool)

    def alone(connection: Connection) -> None:
        if dialect == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        connection.exec_driver_sql(f"SET LOCAL search_path TO {SCHEMA}")

    event.listen(engine, "begin", alone)
    return engine


def _upgrade(connection: Connection, shown: str) -> None:
    from alembic import command  # noqa: PLC0415  0.3 s that only a new ledger pays
    from alembic.config import Config  # noqa: PLC0415  the same
    from alembic.migration import MigrationContext  # noqa: PLC0415  the same
    from alembic.script import ScriptDirectory  # noqa: PLC0415  the same

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    found = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_heads()
    for revision in set(found) - known:
        raise LedgerError(
            f"the ledger at {shown} has version {revision} and this package knows versions up to {HEAD}: "
            "a newer prefect-executions wrote it. Upgrade this one, or set EXECUTIONS_LEDGER to another place "
            "and run 'executions ledger rebuild'."
        )
    command.upgrade(config, "head")
