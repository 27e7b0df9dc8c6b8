"""The ledger in PostgreSQL, in its own schema, so that it can share a database with other applications."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from prefect_executions.errors import LedgerError
from prefect_executions.ledger import queries
from prefect_executions.ledger.database import Database, Session, scrub
from prefect_executions.ledger.migrate import HEAD, LOCK, SCHEMA, VERSION_TABLE, migrate

Connection = psycopg.Connection[tuple[Any, ...]]

# A pooler may use another session for each transaction, so each sets the schema: https://www.pgbouncer.org/features
_IN_SCHEMA = f"SET LOCAL search_path TO {SCHEMA}"
_BEGIN_READING = f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {_IN_SCHEMA}".encode()
_BEGIN_WRITING = f"BEGIN; {_IN_SCHEMA}".encode()
# Writers of one execution exclude each other. A bulk write locks the whole ledger. Deadlocks are impossible.
_LOCK_ONE = b"SELECT pg_advisory_xact_lock_shared($1), pg_advisory_xact_lock($2)"
_LOCK_ALL = b"SELECT pg_advisory_xact_lock($1)"
# Defaults that the URL can override. psycopg's own timeout of 130 s is longer than a hook may take.
_CONNECTION_DEFAULTS: dict[str, str | int | None] = {"connect_timeout": 10, "application_name": "prefect-executions"}


class PostgresDatabase(Database[Connection]):
    """The ledger's database in PostgreSQL, at a libpq URL."""

    driver_error = psycopg.Error
    connection_lost = (psycopg.OperationalError,)

    def __init__(self, url: str, shown: str) -> None:
        super().__init__(shown)
        self._url = url

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with self._transaction(_begin_reading) as connection:
            yield PostgresSession(connection)

    @contextmanager
    def writing(self, execution_id: str | None) -> Iterator[Session]:
        with self._transaction(_begin_writing) as connection:
            if execution_id is None:
                connection.execute(_LOCK_ALL, (LOCK,))
            else:
                connection.execute(_LOCK_ONE, (LOCK, _lock_key(execution_id)))
            yield PostgresSession(connection)

    def _connect(self) -> Connection:
        connection = self._open(autocommit=True)
        # Its statements have PostgreSQL's own placeholders. The default cursor parses each statement, which takes
        # longer than its execution if there are thousands of values.
        connection.cursor_factory = psycopg.RawCursor
        try:
            if _revision(connection) != HEAD:
                migrate("postgresql", lambda: self._open(autocommit=False), self.shown)
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self, *, autocommit: bool) -> Connection:
        try:
            parameters = _CONNECTION_DEFAULTS | conninfo_to_dict(self._url)
            return psycopg.connect(make_conninfo("", **parameters), autocommit=autocommit)
        except psycopg.Error as error:
            cause = scrub(str(error).strip(), self._url)
            # Not chained: libpq's message may contain the password of a URL that it cannot parse.
            raise LedgerError(f"the ledger at {self.shown} cannot be reached: {cause}") from None

    def _commit(self, connection: Connection) -> None:
        connection.execute(b"COMMIT")


class PostgresSession:
    """An open transaction in PostgreSQL; see `Session`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def fetch_all(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._connection.execute(_native_placeholders(sql), values).fetchall()

    def execute(self, sql: str, values: Sequence[Any] = ()) -> int:
        return self._connection.execute(_native_placeholders(sql), values).rowcount

    def insert(self, sql: str, values: Sequence[Any]) -> int:
        row = self._connection.execute(_native_placeholders(sql + " RETURNING key"), values).fetchone()
        return int(row[0]) if row else 0

    def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(_native_placeholders(sql), rows)

    def append_changes(self, ids: Sequence[str], token: int, *, removed: bool) -> int:
        # One round trip, because all other writers wait from here to the commit.
        values = (len(ids), len(ids), token, removed, list(ids))
        return int(self.fetch_all(queries.APPEND_CHANGES, values)[0][0])


@lru_cache
def _native_placeholders(sql: str) -> bytes:
    first, *others = sql.split("?")
    return "".join((first, *(f"${number}{part}" for number, part in enumerate(others, 1)))).encode()


def _begin_reading(connection: Connection) -> None:
    connection.execute(_BEGIN_READING)


def _begin_writing(connection: Connection) -> None:
    connection.execute(_BEGIN_WRITING)


def _revision(connection: Connection) -> str | None:
    table = f"{SCHEMA}.{VERSION_TABLE}"
    existing = connection.execute("SELECT to_regclass($1)", (table,)).fetchone()
    if existing is None or existing[0] is None:
        return None
    row = connection.execute(f"SELECT version_num FROM {table}".encode()).fetchone()  # noqa: S608  a constant
    return str(row[0]) if row else None


def _lock_key(execution_id: str) -> int:
    return int.from_bytes(sha256(execution_id.encode()).digest()[:8], signed=True)
